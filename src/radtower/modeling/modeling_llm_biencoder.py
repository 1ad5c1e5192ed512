"""Report encoder: a decoder LLM read in both directions, and one vector per text.

Axes in this file: B texts, T tokens, E embedding, F findings.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.logging import tqdm

from ..configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from .llm_biencoder.modeling_llm_import import read_llm
from .llm_biencoder.modeling_text_inputs import as_texts, text_inputs
from .modeling_latent_attention import LatentAttentionPooling, masked_mean


class LLMBiEncoderPreTrainedModel(PreTrainedModel):
    """What the models of this family share."""

    config_class = LLMBiEncoderConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    input_modalities = ["text"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch: Trainer must scale it when accumulating
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LatentAttentionPooling):
            init.normal_(module.latents)
            if module.variant == "prenorm":
                for parameter in module.output_parameters():
                    init.zeros_(parameter)


class LLMBiEncoder(LLMBiEncoderPreTrainedModel):
    """Text in, one vector out (LLM2Vec4CXR, arXiv 2509.15234).

    ``model`` is the plain decoder and ``latent_attn`` the pooling head, under the names of the public
    weights. Vectors are not normalized.

    Args:
        config: Decoder, direction and pooling.
        add_pooling_layer: False leaves the pooling head out, for models that read the token states.
    """

    def __init__(self, config: LLMBiEncoderConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        decoder_config: Any = config.text_config
        # Here too: from_pretrained(folder, bidirectional=...) changes the field of a finished configuration.
        decoder_config.is_causal = not config.bidirectional
        self.model = AutoModel.from_config(decoder_config)
        # Some attention backends read the flag of the layer and not of the configuration.
        for module in self.model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = not config.bidirectional
        self.should_pool = add_pooling_layer
        self.latent_attn: LatentAttentionPooling | None = None
        if add_pooling_layer and config.pooling == "latent_attention":
            self.latent_attn = LatentAttentionPooling(
                config.hidden_size, config.num_latents, config.num_latent_heads, config.latent_variant
            )
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.post_init()

    @classmethod
    def from_llm(
        cls,
        path: str | os.PathLike[str],
        *,
        num_hidden_layers: int | None = None,
        dtype: torch.dtype = torch.float32,
        **config: Any,
    ) -> "LLMBiEncoder":
        """Wrap a causal language model; its tokenizer comes along.

        Args:
            path: Model folder, Hub id, or a ``.gguf`` file, which is dequantized.
            num_hidden_layers: Keep only the lowest layers. None keeps all.
            dtype: Precision of the weights.
            **config: Fields of :class:`LLMBiEncoderConfig`.

        Returns:
            The encoder, with a freshly initialized pooling head where the pooling has one.

        Raises:
            ValueError: If ``path`` holds a model of this package, weights of the decoder are missing, or
                ``num_hidden_layers`` is not in 1..depth.
        """
        decoder, tokenizer = read_llm(path, num_hidden_layers, dtype)
        text_config = decoder.config.to_dict()
        # The weights are plain now: with this field left, reloading would look for the GGUF file again.
        text_config.pop("quantization_config", None)
        encoder: LLMBiEncoder = cls._from_config(
            LLMBiEncoderConfig(text_config=text_config, **config), dtype=dtype
        )
        encoder.model.load_state_dict(decoder.state_dict())
        encoder.tokenizer = tokenizer
        return encoder.eval()

    def get_input_embeddings(self) -> nn.Module:
        """Token embedding of the decoder."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding of the decoder."""
        self.model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        embed_mask: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode a batch of token ids.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, 1 for real tokens, padded on either side. None means no padding.
                Never derive it from the ids: in some models the pad token is also the last real one.
            embed_mask: ``(B, T)``, 1 for the tokens to pool. None pools every real token.

        Returns:
            ``last_hidden_state`` ``(B, T, E)`` and ``pooler_output`` ``(B, E)`` in float32, not normalized.

        Raises:
            ValueError: If a row has no token to pool.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        mask = attention_mask if embed_mask is None else embed_mask * attention_mask
        pooled = self._pool(hidden, mask) if self.should_pool else None
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        empty = (mask.sum(dim=1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"every text must have a token to pool, got none in rows {empty}. "
                "Remove empty texts, and check that something follows the separator."
            )
        if self.latent_attn is not None:
            return self.latent_attn(hidden, mask)
        if self.config.pooling == "mean":
            return masked_mean(hidden, mask)
        positions = torch.arange(mask.shape[1], device=mask.device)
        if self.config.pooling == "last_token":
            index = (mask * positions).argmax(dim=1)
        else:
            index = mask.argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), index].float()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer saved beside the weights, loaded at first use; can be set.

        Raises:
            OSError: If there is none.
        """
        if self._tokenizer is None:
            revision = getattr(self.config, "_commit_hash", None)
            # Else transformers asks the user, for a tokenizer that needs no code of the repository.
            is_remote = type(self).__module__.startswith("transformers_modules.")
            try:
                self.tokenizer = AutoTokenizer.from_pretrained(
                    self.name_or_path, revision=revision, trust_remote_code=is_remote
                )
            except (OSError, ValueError) as error:  # which of the two, and how clear, depends on the files
                raise OSError(
                    f"tokenizer must lie beside the weights, got none that loads in {self.name_or_path!r}. "
                    "Save one there, or set model.tokenizer."
                ) from error
        assert self._tokenizer is not None
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._tokenizer = tokenizer

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save weights and configuration, and the tokenizer if one is at hand."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(save_directory)

    def tokenize(
        self, texts: str | Sequence[str], max_length: int | None = None, separator: str | None = None
    ) -> BatchEncoding:
        """Turn texts into the inputs of :meth:`forward`, padded to the longest.

        Args:
            texts: One text or several.
            max_length: Tokens kept; the end is cut. None takes the configuration's.
            separator: Splits each text once into an instruction and what is pooled; the separator itself is
                not read. None pools everything.

        Returns:
            ``input_ids``, ``attention_mask`` and, with a separator, ``embed_mask``, on the model's device.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If a text or the separator is empty, an instruction alone fills ``max_length``, or
                ``max_length`` is below 1.
        """
        max_length = self.config.max_length if max_length is None else max_length
        inputs = text_inputs(self.tokenizer, texts, max_length, separator, self.config.mask_mode)
        return inputs.to(self.device)

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str], max_length: int | None = None) -> torch.Tensor:
        """Encode whole texts in one batch: ``(B, E)``, not normalized; special tokens are pooled too."""
        return self(**self.tokenize(texts, max_length)).pooler_output

    @torch.no_grad()
    def encode_with_separator(
        self, texts: str | Sequence[str], separator: str | None = None, max_length: int | None = None
    ) -> torch.Tensor:
        """Encode ``instruction + separator + text`` in one batch, pooling the text only.

        Args:
            texts: One text or several; one without a separator is pooled whole, special tokens excepted.
            separator: None takes the configuration's.
            max_length: Tokens kept. None takes the configuration's.

        Returns:
            ``(B, E)``, not normalized.
        """
        separator = self.config.separator if separator is None else separator
        return self(**self.tokenize(texts, max_length, separator)).pooler_output

    def compute_similarities(
        self,
        query_text: str,
        candidate_texts: str | Sequence[str],
        separator: str | None = None,
        max_length: int | None = None,
    ) -> torch.Tensor:
        """Cosine similarity of one query with each candidate: ``(N,)`` in [-1, 1]."""
        texts = [query_text, *as_texts(candidate_texts)]
        embeds = F.normalize(self.encode_with_separator(texts, separator, max_length), dim=-1)
        return embeds[1:] @ embeds[0]

    @torch.no_grad()
    def encode(
        self,
        texts: str | Sequence[str],
        instruction: str | None = None,
        batch_size: int = 16,
        show_progress: bool = False,
    ) -> torch.Tensor:
        """Encode many texts in batches of similar length.

        Args:
            texts: One text or any number of them.
            instruction: Put before every text and not pooled. None pools whole texts.
            batch_size: Texts at a time.
            show_progress: Whether to draw a bar on stderr.

        Returns:
            ``(N, E)`` in the order of ``texts``, on the model's device, not normalized.

        Raises:
            ValueError: If ``batch_size`` is below 1; see :meth:`tokenize` for the texts.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}. Use 1 on a small machine.")
        texts = as_texts(texts)
        separator = None if instruction is None else self.config.separator
        whole = texts if instruction is None else [f"{instruction}{separator}{text}" for text in texts]
        order = sorted(range(len(whole)), key=lambda row: len(whole[row]))
        starts = range(0, max(1, len(order)), batch_size)  # no text at all: let tokenize refuse it
        batches = [
            self(**self.tokenize([whole[row] for row in order[start : start + batch_size]], None, separator))
            for start in tqdm(starts, desc="Encoding texts", unit="batch", disable=not show_progress)
        ]
        embeds = torch.cat([batch.pooler_output for batch in batches])
        return embeds[torch.tensor(order, device=embeds.device).argsort()]
