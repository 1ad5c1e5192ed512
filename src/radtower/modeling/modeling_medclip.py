"""Dual tower: scans and reports in one space, with zero-shot scoring.

Axes in this file: B studies, N scans, M texts, P projected embedding, F findings.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from ..configuration.configuration_medclip import MedCLIPConfig
from .llm_biencoder.modeling_cpu_linear import OneDNNLinears, refuse_int8
from .llm_biencoder.modeling_encode_batches import BatchLimit, encode_distinct, in_eval_mode
from .llm_biencoder.modeling_loaded_from import LoadedFrom
from .llm_biencoder.modeling_text_inputs import TokenRow, as_texts, pad_rows
from .losses import masked_binary_cross_entropy, symmetric_info_nce
from .modeling_ct3d import CT3DVisionModel
from .modeling_llm_biencoder import LLMBiEncoder

OWN_FAMILIES: dict[str, type[PreTrainedModel]] = {
    "ct3d_vision": CT3DVisionModel,
    "llm_biencoder": LLMBiEncoder,
}
MAX_LOGIT_SCALE = 100.0  # CLIP, arXiv 2103.00020, section 2.5
FINDING_LOSS_WEIGHT = 0.5  # of each modality's finding loss beside InfoNCE: GreenRFM, arXiv 2603.06467

# Sentences with and without the finding; a zero-shot score is the contrast of the two. Sources: CT-CLIP
# (arXiv 2403.17834) for "is present", the GreenRFM code for the others.
PROMPT_PAIRS = {
    "there_is": ("There is {finding}.", "There is no {finding}."),
    "is_present": ("{finding} is present.", "{finding} is not present."),
    "compatible_with": (
        "Findings are compatible with {finding}.",
        "Findings are not compatible with {finding}.",
    ),
    "not": ("{finding}.", "not {finding}."),
}


class LogitScale(nn.Module):
    """Learned inverse temperature; a module, so that adapters can save it and FSDP can shard it.

    Args:
        initial: Logarithm of the first value.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.log_value = nn.Parameter(torch.empty(1))

    def forward(self) -> torch.Tensor:
        """``(1,)``, after ``exp`` and capped."""
        return self.log_value.float().exp().clamp(max=MAX_LOGIT_SCALE)


@dataclass
class MedCLIPOutput(ModelOutput):
    """What :meth:`MedCLIPModel.forward` returns.

    Args:
        loss: Scalar, only with ``return_loss=True``.
        logits_per_image: ``(B, B)``, scaled cosine of scan i (row) and report j.
        logits_per_text: Its transpose.
        image_embeds: ``(B, P)``, L2-normalized.
        text_embeds: ``(B, P)``, L2-normalized.
        finding_logits_image: ``(B, F)`` of the shared finding head on the scans; None without one.
        finding_logits_text: ``(B, F)`` of the same head on the reports; None without one.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    finding_logits_image: torch.Tensor | None = None
    finding_logits_text: torch.Tensor | None = None


class MedCLIPModel(PreTrainedModel):
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
    _keep_in_fp32_modules_strict = ["logit_scale"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MedCLIPConfig) -> None:
        super().__init__(config)
        size = config.projection_dim
        vision_config: Any = config.vision_config
        text_config: Any = config.text_config
        self.vision_model = _build_tower(vision_config)
        self.text_model = _build_tower(text_config)
        self.visual_projection = _build_projection(config.vision_projection, vision_config.hidden_size, size)
        self.text_projection = _build_projection(config.text_projection, text_config.hidden_size, size)
        self.logit_scale = LogitScale(float(config.logit_scale_init))
        self.finding_head = nn.Linear(size, len(config.findings)) if config.findings else None
        self._processor: Any = None
        self._loaded_from: LoadedFrom | None = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LogitScale):
            init.constant_(module.log_value, module.initial)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load as transformers does, and remember where the processor is."""
        path = pretrained_model_name_or_path
        source = None if path is None else LoadedFrom.of(path, kwargs)
        loaded: Any = super().from_pretrained(path, *args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._loaded_from = source
        return loaded

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
        model.vision_model.load_state_dict(vision.state_dict())
        model.text_model.load_state_dict(text.state_dict())
        return model

    def get_image_features(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """Encode and project scans; ``pooler_output`` is ``(B, P)``, not normalized."""
        output = self.vision_model(pixel_values)
        output.pooler_output = self.visual_projection(output.pooler_output)
        return output

    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        embed_mask: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode and project token ids; ``pooler_output`` is ``(B, P)``, not normalized.

        A hard or soft prompt of the text tower is put in front of every text.

        Raises:
            ValueError: If the text tower has a text prefix, which only the processor could add.
        """
        self.config.validate_text_prefix()
        masks = {"attention_mask": attention_mask} | (
            {} if embed_mask is None else {"embed_mask": embed_mask}
        )
        output = self.text_model(input_ids=input_ids, **masks)
        output.pooler_output = self._project_text(output.pooler_output)
        return output

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        embed_mask: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool = True,
    ) -> MedCLIPOutput:
        """Compare B scans with B reports; row i of both is one study.

        Args:
            input_ids: ``(B, T)``; not needed with ``text_features``.
            attention_mask: ``(B, T)``. None means no padding.
            pixel_values: ``(B, C, Z, Y, X)``, or what the image tower takes.
            embed_mask: ``(B, T)``, the tokens to pool. None pools all.
            text_features: ``(B, E)``, pooled output of the text tower before projection, computed earlier
                from a frozen tower.
            labels: ``(B, F)`` in [0, 1], -100 where unknown, for the shared finding head. Without them,
                ``Trainer`` reports an ``eval_loss`` only with ``TrainingArguments(label_names=[])``.
            return_loss: Whether to compute InfoNCE, plus half the finding loss of each modality with
                ``labels``.

        Returns:
            See :class:`MedCLIPOutput`.

        Raises:
            ValueError: If not exactly one of ``input_ids`` and ``text_features`` is given, ``pixel_values``
                is missing, or ``labels`` come without a finding head.
        """
        if pixel_values is None or (input_ids is None) == (text_features is None):
            given = [
                n for n, v in (("input_ids", input_ids), ("text_features", text_features)) if v is not None
            ]
            raise ValueError(
                f"forward must have pixel_values and one of input_ids and text_features, got {given} and "
                f"pixel_values {'missing' if pixel_values is None else 'present'}. "
                "Use get_image_features or get_text_features for a single tower."
            )
        if labels is not None and self.finding_head is None:
            raise ValueError(
                f"labels must come with a finding head, got labels {tuple(labels.shape)} and no findings. "
                "Name the findings in the configuration, or leave the labels out."
            )
        image = _pooled(self.get_image_features(pixel_values))
        if text_features is None:
            assert input_ids is not None  # checked above
            text = _pooled(self.get_text_features(input_ids, attention_mask, embed_mask))
        else:
            text = self._project_text(text_features)
        image_embeds, text_embeds = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        logits = self.logit_scale() * image_embeds @ text_embeds.T
        finding_logits = [] if self.finding_head is None else [self.finding_head(h) for h in (image, text)]
        loss = symmetric_info_nce(image_embeds, text_embeds, self.logit_scale()) if return_loss else None
        if loss is not None and labels is not None:
            for scores in finding_logits:
                loss = loss + FINDING_LOSS_WEIGHT * masked_binary_cross_entropy(scores, labels)
        return MedCLIPOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=logits.T,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            finding_logits_image=finding_logits[0] if finding_logits else None,
            finding_logits_text=finding_logits[1] if finding_logits else None,
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
        """Embed scans.

        Args:
            images: ``pixel_values`` ``(N, C, Z, Y, X)``, or whatever the image processor takes: paths,
                volumes, arrays in Hounsfield units.
            normalize: Whether to return unit vectors.
            **kwargs: For the image processor, such as ``spacings_mm`` of arrays.

        Returns:
            ``(N, P)``.
        """
        if not (isinstance(images, torch.Tensor) and images.ndim == 5):
            images = self.processor.image_processor(images, **kwargs)["pixel_values"]
        embeds = _pooled(self.get_image_features(images.to(self.device))).float()
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
            return _pooled(self.get_text_features(**inputs)).float()

        with in_eval_mode(self), OneDNNLinears():
            embeds = encode_distinct(as_texts(texts), read, embed, limit, show_progress)
        return F.normalize(embeds, dim=-1) if normalize else embeds

    def compute_similarities(self, images: Any, texts: str | Sequence[str], **kwargs: Any) -> torch.Tensor:
        """Cosine similarity of each scan with each text: ``(N, M)`` in [-1, 1]."""
        return self.encode_image(images, **kwargs) @ self.encode_text(texts).T

    @torch.no_grad()
    def finding_directions(self, findings: str | Sequence[str], prompts: str = "ensemble") -> torch.Tensor:
        """Embedding of "present" minus embedding of "absent", per finding, averaged over prompt pairs.

        Args:
            findings: One phrase or several, to put into the prompts.
            prompts: A key of ``PROMPT_PAIRS``, or ``"ensemble"`` for all of them.

        Returns:
            ``(F, P)``; its product with a unit image vector is the margin of the pair.

        Raises:
            KeyError: If ``prompts`` names no prompt pair.
            ValueError: If there is no finding, or one is blank.
        """
        findings = as_texts(findings)
        blank = [position for position, finding in enumerate(findings) if not finding.strip()]
        if blank or not findings:
            raise ValueError(
                f"findings must be named, got {len(findings)} with blanks at {blank}. Name each."
            )
        if prompts != "ensemble" and prompts not in PROMPT_PAIRS:
            raise KeyError(
                f"prompts must be 'ensemble' or one of {sorted(PROMPT_PAIRS)}, got {prompts!r}. Choose one."
            )
        pairs = list(PROMPT_PAIRS.values()) if prompts == "ensemble" else [PROMPT_PAIRS[prompts]]
        sentences = [
            _capitalize(template.format(finding=finding))
            for pair in pairs
            for template in pair
            for finding in findings
        ]
        embeds = self.encode_text(sentences).unflatten(0, (len(pairs), 2, len(findings)))
        return (embeds[:, 0] - embeds[:, 1]).mean(dim=0)

    def zero_shot(
        self, images: Any, findings: str | Sequence[str], prompts: str = "ensemble", **kwargs: Any
    ) -> torch.Tensor:
        """Score findings nobody trained a classifier for.

        The softmax over "present" and "absent" is calibrated by nothing: rank with it, do not diagnose.

        Args:
            images: See :meth:`encode_image`.
            findings: Phrases such as ``"pleural effusion"``.
            prompts: See :meth:`finding_directions`.
            **kwargs: For the image processor.

        Returns:
            ``(N, F)`` in [0, 1].
        """
        margins = self.encode_image(images, **kwargs) @ self.finding_directions(findings, prompts).T
        with torch.no_grad():
            return torch.sigmoid(self.logit_scale() * margins)

    def _project_text(self, pooled: torch.Tensor) -> torch.Tensor:
        # Our text tower pools in float32 whatever its weights are.
        return self.text_projection(pooled.to(next(self.text_projection.parameters()).dtype))


def _build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """Build our families directly: where they are remote code, AutoModel does not know them."""
    # By name and not by class: transformers loads remote configurations and remote models from two copies
    # of the code, whose classes differ.
    family = OWN_FAMILIES.get(config.model_type)
    tower: PreTrainedModel = AutoModel.from_config(config) if family is None else family._from_config(config)
    return tower


def _pooled(output: BaseModelOutputWithPooling) -> torch.Tensor:
    assert output.pooler_output is not None  # both towers pool
    return output.pooler_output


def _build_projection(kind: str, width: int, size: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(width, size, bias=False)
    return nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.Linear(size, size))


def _capitalize(sentence: str) -> str:
    """Upper-case the first letter alone: ``str.capitalize`` would spoil "CT"."""
    return sentence[:1].upper() + sentence[1:]
