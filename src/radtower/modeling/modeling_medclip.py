"""Dual tower: scans and reports in one space, with zero-shot scoring.

Axes in this file: B studies, N scans, M texts, P projected embedding, F findings.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoProcessor, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_medclip import MedCLIPConfig, tower_width
from .llm_biencoder.modeling_cpu_linear import OneDNNLinears, refuse_int8
from .llm_biencoder.modeling_encode_batches import BatchLimit, encode_distinct, in_eval_mode
from .llm_biencoder.modeling_inner_outputs import inner_outputs, with_inner
from .llm_biencoder.modeling_loaded_from import LoadedFrom
from .llm_biencoder.modeling_text_inputs import TokenRow, as_texts, pad_rows
from .losses import masked_binary_cross_entropy
from .modeling_ct3d import CT3DVisionModel
from .modeling_joint_space import LogitBias, LogitScale, build_projection, like_weights
from .modeling_llm_biencoder import LLMBiEncoder
from .modeling_medclip_output import MedCLIPOutput
from .modeling_pair_objective import PairObjective
from .modeling_pair_relation import PairRelation
from .modeling_towers import build_tower, fill_tower, freeze_unread_poolers, pool_states
from .modeling_zero_shot import ZeroShotFindings

PROJECTION_STD = 0.02  # of new projections and heads, whatever the towers begin with
FINDING_LOSS_WEIGHT = 0.5  # of each modality's finding loss beside InfoNCE: GreenRFM, arXiv 2603.06467


class MedCLIPModel(ZeroShotFindings, PreTrainedModel):
    """An image tower, a text tower, a projection each, and a learned temperature.

    Args:
        config: Both towers and the joint space.
    """

    config_class = MedCLIPConfig
    base_model_prefix = "medclip"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch: Trainer must scale it when accumulating
    _no_split_modules = ["CT3DBasicBlock"]
    _keep_in_fp32_modules_strict = ["logit_scale", "logit_bias", "finding_head"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MedCLIPConfig) -> None:
        super().__init__(config)
        size = config.projection_dim
        vision_config: Any = config.vision_config
        text_config: Any = config.text_config
        self.vision_model = build_tower(vision_config, config.vision_pooling)
        self.text_model = build_tower(text_config, config.text_pooling)
        self.visual_projection = build_projection(config.vision_projection, tower_width(vision_config), size)
        self.text_projection = build_projection(config.text_projection, tower_width(text_config), size)
        self.logit_scale = LogitScale(float(config.logit_scale_init))
        self.logit_bias = LogitBias(float(config.logit_bias_init)) if config.loss == "siglip" else None
        self.objective = PairObjective(
            loss=config.loss,
            similarity=config.similarity,
            label_share=float(config.label_share),
            matryoshka_dims=tuple(config.matryoshka_dims),
        )
        self.finding_head = nn.Linear(size, len(config.findings)) if config.findings else None
        self._processor: Any = None
        self._loaded_from: LoadedFrom | None = None
        self._freeze_the_unread()
        parts = {part for name, _ in self.named_parameters() for part in name.split(".")}
        # Only those of this configuration: transformers asks that each be there.
        self._keep_in_fp32_modules_strict = [x for x in self._keep_in_fp32_modules_strict if x in parts]
        self.post_init()

    def _freeze_the_unread(self) -> None:
        """Distributed training waits for the gradient of whatever may have one; loading makes that all."""
        if self.config.similarity == "legacy_dot":
            self.logit_scale.requires_grad_(False)
        freeze_unread_poolers(self.vision_model, self.config.vision_pooling)
        freeze_unread_poolers(self.text_model, self.config.text_pooling)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # transformers would take the deviation of the language model
            init.normal_(module.weight, std=PROJECTION_STD)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)
        if isinstance(module, LogitScale):
            init.constant_(module.log_value, module.initial)
        if isinstance(module, LogitBias):
            init.constant_(module.value, module.initial)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load as transformers does, and remember where the processor is.

        Raises:
            ValueError: If the folder is a checkpoint with adapters, whose layers have other names.
        """
        path = pretrained_model_name_or_path
        source = None if path is None else LoadedFrom.of(path, kwargs)
        has_report = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        model, report = loaded
        if any("lora_" in name for name in report["unexpected_keys"]):
            raise ValueError(
                f"{path} must be a model folder, got a checkpoint with LoRA adapters, which are not merged. "
                "Resume its training, or load the folder that the training saves at its end."
            )
        model._loaded_from = source
        model._freeze_the_unread()
        return (model, report) if has_report else model

    @classmethod
    def from_towers(cls, vision: PreTrainedModel, text: PreTrainedModel, **config: Any) -> "MedCLIPModel":
        """Join two towers with their weights; projections, scale and finding head start fresh.

        Args:
            vision: Image tower.
            text: Text tower.
            **config: Fields of :class:`MedCLIPConfig`.

        Raises:
            RuntimeError: If a tower's weights do not fit its own configuration.
        """
        towers = MedCLIPConfig(
            vision_config=vision.config.to_dict(), text_config=text.config.to_dict(), **config
        )
        model = cls(towers)
        fill_tower(model.vision_model, vision)
        fill_tower(model.text_model, text)
        return model

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode and project scans; ``pooler_output`` is ``(B, P)``, not normalized.

        The other arguments are those of :meth:`forward`.
        """
        inner = inner_outputs(self.config, output_hidden_states, output_attentions)
        output = self._read_pixels(pixel_values, inner)
        output.pooler_output = self._project_image(pool_states(output, self.config.vision_pooling))
        return output

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        embed_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode and project token ids; ``pooler_output`` is ``(B, P)``, not normalized.

        A hard or soft prompt of the text tower is put in front of every text.

        Raises:
            ValueError: If the text tower has a text prefix, which only the processor could add.
        """
        inner = inner_outputs(self.config, output_hidden_states, output_attentions)
        output = self._encode_tokens(input_ids, attention_mask, embed_mask, inner)
        output.pooler_output = self._project_text(_pooled(output))
        return output

    def get_input_embeddings(self) -> nn.Module:
        """Embedding of the tokens of a report; accelerate asks for it where weights lie in shards."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Vectors of the image tower before projection, ``(B, E)``: a frozen one gives them once."""
        return pool_states(self._read_pixels(pixel_values, {}), self.config.vision_pooling)

    def text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        embed_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Vectors of the text tower before projection, ``(B, E)``."""
        return _pooled(self._encode_tokens(input_ids, attention_mask, embed_mask, {}))

    def _read_pixels(self, pixel_values: torch.Tensor, inner: dict[str, Any]) -> Any:
        if isinstance(self.vision_model, CT3DVisionModel):  # it has no attention
            inner = {name: value for name, value in inner.items() if name != "output_attentions"}
        # Processors give float32, and not every family brings them to the precision of its weights.
        return self.vision_model(pixel_values.to(self.vision_model.dtype), return_dict=True, **inner)

    def _encode_tokens(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        embed_mask: torch.Tensor | None,
        inner: dict[str, Any],
    ) -> BaseModelOutputWithPooling:
        self.config.validate_text_prefix()
        masks = {"attention_mask": attention_mask} | (
            {} if embed_mask is None else {"embed_mask": embed_mask}
        )
        output = self.text_model(input_ids=input_ids, return_dict=True, **masks, **inner)
        pooled = pool_states(output, self.config.text_pooling, attention_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=pooled,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @can_return_tuple
    def forward(  # noqa: PLR0913 -- the two sides of transformers, each also as stored features
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        embed_mask: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool = True,
        image_features: torch.Tensor | None = None,
        pair_keys: torch.Tensor | None = None,
        return_logits: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MedCLIPOutput:
        """Compare B scans with B reports; row i of both is one study.

        Args:
            input_ids: ``(B, T)``; not needed with ``text_features``.
            attention_mask: ``(B, T)``. None means no padding.
            pixel_values: ``(B, C, Z, Y, X)``, or what the image tower takes; not needed with
                ``image_features``.
            embed_mask: ``(B, T)``, the tokens to pool. None pools all.
            text_features: ``(B, E)``, output of :meth:`text_features`, computed earlier from a frozen tower.
            labels: ``(B, F)`` in [0, 1], -100 where unknown, for the shared finding head, and for the targets
                of ``soft_infonce``. Without them, ``Trainer`` reports an ``eval_loss`` only with
                ``TrainingArguments(label_names=[])``.
            return_loss: Whether to compute the contrastive loss, plus half the finding loss of each modality
                with ``labels`` and a finding head. False also takes scans or reports alone. One scan with
                several texts has no loss: they are candidates, as in the zero-shot pipeline of transformers;
                nor has ``soft_infonce`` without labels in evaluation mode.
            image_features: ``(B, E)``, output of :meth:`image_features`, likewise.
            pair_keys: ``(B, K)`` int64, hashes of the report, of the study and so on, 0 for none: pairs that
                share one are no negatives of each other. None takes all others as negatives.
            return_logits: Whether to make the ``(B, B)`` logits, which the loss does not need.
            output_hidden_states: Whether to return what the towers gave, with the states of their inner
                layers. None does as the configuration says.
            output_attentions: Likewise of attention maps, where a tower has them:
                ``attn_implementation="eager"``.

        Returns:
            See :class:`MedCLIPOutput`.

        Raises:
            ValueError: If a side is given twice, or not at all where both are needed, or ``labels`` come
                without a use, or are needed for training and missing.
        """
        self._require_sides(pixel_values, image_features, input_ids, text_features, return_loss)
        if return_loss and labels is None:
            # Soft targets go by the labels, which nobody has who only scores.
            is_scoring = self.objective.needs_labels and not self.training
            return_loss = not is_scoring and not _are_candidates(
                pixel_values if image_features is None else image_features,
                input_ids if text_features is None else text_features,
            )
        self._require_labels(labels, return_loss)
        inner = inner_outputs(self.config, output_hidden_states, output_attentions)
        scans = reports = None
        if pixel_values is not None:
            scans = self._read_pixels(pixel_values, inner)
            image_features = pool_states(scans, self.config.vision_pooling)
        if input_ids is not None:
            reports = self._encode_tokens(input_ids, attention_mask, embed_mask, inner)
            text_features = _pooled(reports)
        image = None if image_features is None else self._project_image(image_features)
        text = None if text_features is None else self._project_text(text_features)
        output = self._describe(image, text, return_logits)
        output.text_model_output, output.vision_model_output = with_inner(reports), with_inner(scans)
        if return_loss:
            assert image is not None  # checked above, as is the next
            assert text is not None
            output.loss = self._loss(output, image, text, labels, pair_keys)
        return output

    def _describe(
        self, image: torch.Tensor | None, text: torch.Tensor | None, has_logits: bool
    ) -> MedCLIPOutput:
        """Everything but the loss, of projected scans and reports."""
        image_embeds, text_embeds = (None if x is None else self.objective.embed(x) for x in (image, text))
        scale, bias = self.logit_scale(), None if self.logit_bias is None else self.logit_bias()
        logits = None
        if has_logits and image_embeds is not None and text_embeds is not None:
            logits = self.objective.logits(image_embeds, text_embeds, scale, bias)
        finding_logits = [None if x is None else self._finding_logits(x) for x in (image, text)]
        return MedCLIPOutput(
            logits_per_image=logits,
            logits_per_text=None if logits is None else logits.T,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            finding_logits_image=finding_logits[0],
            finding_logits_text=finding_logits[1],
            image_projection=image,
            text_projection=text,
            logit_scale=scale,
            logit_bias=bias,
        )

    def _finding_logits(self, projected: torch.Tensor) -> torch.Tensor | None:
        head = self.finding_head
        return None if head is None else head(like_weights(projected, head))

    def _loss(
        self,
        output: MedCLIPOutput,
        image: torch.Tensor,
        text: torch.Tensor,
        labels: torch.Tensor | None,
        pair_keys: torch.Tensor | None,
    ) -> torch.Tensor:
        assert output.logit_scale is not None
        relation_labels = labels if self.objective.needs_labels else None
        relation = PairRelation(
            own=torch.arange(len(image), device=image.device),
            row_keys=pair_keys,
            column_keys=pair_keys,
            row_labels=relation_labels,
            column_labels=relation_labels,
            label_share=0.0 if relation_labels is None else self.objective.label_share,
        )
        loss = self.objective(image, text, output.logit_scale, output.logit_bias, relation)
        for scores in (output.finding_logits_image, output.finding_logits_text):
            if labels is not None and scores is not None:
                loss = loss + FINDING_LOSS_WEIGHT * masked_binary_cross_entropy(scores, labels)
        return loss

    @staticmethod
    def _require_sides(
        pixel_values: torch.Tensor | None,
        image_features: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        text_features: torch.Tensor | None,
        return_loss: bool,
    ) -> None:
        scans = {"pixel_values": pixel_values, "image_features": image_features}
        reports = {"input_ids": input_ids, "text_features": text_features}
        given = [[name for name, value in side.items() if value is not None] for side in (scans, reports)]
        lengths = [len(names) for names in given]
        if max(lengths) > 1 or (min(lengths) == 0 and (return_loss or max(lengths) == 0)):
            raise ValueError(
                "forward must have one of pixel_values and image_features and one of input_ids and "
                f"text_features, got {given[0]} and {given[1]}. Use return_loss=False for a single tower."
            )

    def _require_labels(self, labels: torch.Tensor | None, return_loss: bool) -> None:
        if labels is not None and self.finding_head is None and not self.objective.needs_labels:
            raise ValueError(
                f"labels must come with a finding head, got labels {tuple(labels.shape)} and no findings. "
                "Name the findings in the configuration, or leave the labels out."
            )
        if return_loss and labels is None and self.objective.needs_labels:
            raise ValueError(
                "labels must be given where soft_infonce trains, got None. Give the findings, or train "
                "with loss='infonce'."
            )

    @property
    def processor(self) -> Any:
        """The processor saved beside the weights, loaded at first use; can be set.

        Raises:
            OSError: If there is none.
        """
        if self._processor is None:
            source = self._loaded_from or LoadedFrom.of(self.name_or_path or "", {})
            self.processor = source.load(AutoProcessor, self)
        return self._processor

    @processor.setter
    def processor(self, processor: Any) -> None:
        self._processor = processor
        if isinstance(self.text_model, LLMBiEncoder):
            self.text_model.tokenizer = processor.tokenizer

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save weights and configuration, and the processor if one is at hand."""
        refuse_int8(self)
        super().save_pretrained(save_directory, *args, **kwargs)
        if self._processor is not None:
            self._processor.save_pretrained(save_directory)

    @torch.no_grad()
    def encode_image(self, images: Any, normalize: bool = True, **kwargs: Any) -> torch.Tensor:
        """Embed scans or images.

        Args:
            images: ``pixel_values``, floating point, ``(N, C, Z, Y, X)``, of a 2D tower ``(N, C, Y, X)``; or
                whatever the processor takes: paths, volumes, arrays in Hounsfield units; for a 2D tower
                paths, Pillow images, arrays.
            normalize: Whether to return unit vectors.
            **kwargs: For the image processor, such as ``spacings_mm`` of arrays.

        Returns:
            ``(N, P)``, as in evaluation mode.

        Raises:
            ValueError: If there is no image.
        """
        if 0 in getattr(images, "shape", (len(images),) if isinstance(images, (list, tuple)) else ()):
            raise ValueError("images must be at least one, got none. Leave the call out.")
        is_3d = self.config.vision_config.model_type == "ct3d_vision"
        num_axes = 5 if is_3d else 4
        if not (isinstance(images, torch.Tensor) and images.ndim == num_axes and images.is_floating_point()):
            prepare = self.processor.image_processor if is_3d else self.processor
            images = prepare(images, **kwargs)["pixel_values"]
        with in_eval_mode(self):
            embeds = _pooled(self.get_image_features(images.to(self.device), return_dict=True)).float()
        return F.normalize(embeds, dim=-1) if normalize else embeds

    @torch.no_grad()
    def encode_text(
        self,
        texts: str | Sequence[str],
        normalize: bool = True,
        batch_size: int | Literal["auto"] = "auto",
        show_progress: bool = False,
    ) -> torch.Tensor:
        """Embed texts: ``(M, P)``, unit vectors unless ``normalize`` is False; see LLMBiEncoder.encode."""
        limit = BatchLimit(batch_size, self.device)

        def read(some: Sequence[str]) -> list[TokenRow]:
            inputs = self.processor(text=list(some))
            rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
            return [TokenRow(ids[mask == 1].tolist(), None) for ids, mask in rows]

        def embed(rows: list[TokenRow]) -> torch.Tensor:
            inputs = pad_rows(self.processor.tokenizer, rows).to(self.device)
            return _pooled(self.get_text_features(**inputs, return_dict=True)).float()

        with in_eval_mode(self), OneDNNLinears():
            embeds = encode_distinct(as_texts(texts), read, embed, limit, show_progress)
        return F.normalize(embeds, dim=-1) if normalize else embeds

    def compute_similarities(self, images: Any, texts: str | Sequence[str], **kwargs: Any) -> torch.Tensor:
        """Cosine similarity of each scan with each text: ``(N, M)`` in [-1, 1]."""
        return self.encode_image(images, **kwargs) @ self.encode_text(texts).T

    def _project_image(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.visual_projection(like_weights(pooled, self.visual_projection))

    def _project_text(self, pooled: torch.Tensor) -> torch.Tensor:
        # Our text tower pools in float32 whatever its weights are.
        return self.text_projection(like_weights(pooled, self.text_projection))


def _are_candidates(images: torch.Tensor | None, texts: torch.Tensor | None) -> bool:
    return images is not None and texts is not None and len(images) == 1 and len(texts) > 1


def _pooled(output: BaseModelOutputWithPooling) -> torch.Tensor:
    assert output.pooler_output is not None  # both towers pool
    return output.pooler_output
