"""Report encoder: a decoder LLM read in both directions, and one vector per text.

Axes in this file: B texts, T tokens, E embedding, F findings.
"""

import copy
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from .llm_biencoder.modeling_attention_direction import check_attention_direction
from .llm_biencoder.modeling_causal_layers import keep_causal
from .llm_biencoder.modeling_cpu_linear import OneDNNLinears, quantize_linears
from .llm_biencoder.modeling_encode_batches import BatchLimit, encode_distinct, in_eval_mode
from .llm_biencoder.modeling_inner_outputs import inner_outputs
from .llm_biencoder.modeling_llm_biencoder_base import (
    PROMPT_FIELDS,
    LLMBiEncoderPreTrainedModel,
    built_settings,
    check_built,
)
from .llm_biencoder.modeling_loaded_from import LoadedFrom
from .llm_biencoder.modeling_prompted_decoder import read_texts
from .llm_biencoder.modeling_soft_prompt import SoftPrompt, warn_of_legacy_padding
from .llm_biencoder.modeling_text_inputs import TokenRow, as_texts, bare_ids, pad_rows, token_rows
from .llm_biencoder.modeling_vector_precision import Precision, check_precision, quantize_vectors, shorten
from .llm_sources.modeling_llm_import import read_llm
from .modeling_latent_attention import LatentAttentionPooling, check_pooled, masked_mean, outermost_token


class LLMBiEncoder(LLMBiEncoderPreTrainedModel):
    """Text in, one vector out (LLM2Vec4CXR, arXiv 2509.15234).

    ``model`` is the plain decoder and ``latent_attn`` the pooling head, under the names of the public
    weights. Vectors are not normalized unless the configuration says so.

    Args:
        config: Decoder, direction and pooling.
        add_pooling_layer: False leaves the pooling head out, for models that read the token states.
    """

    # Heads of this family, left out where an encoder alone is loaded from a folder with one.
    _keys_to_ignore_on_load_unexpected = [r"^finding_attention\.", r"^lm_head\."]

    def __init__(self, config: LLMBiEncoderConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        decoder_config: Any = config.text_config
        # from_pretrained(folder, bidirectional=...) changes the field of a finished configuration; a model
        # that was built of it before must keep its direction.
        if getattr(decoder_config, "is_causal", None) is not (not config.bidirectional):
            decoder_config = copy.deepcopy(decoder_config)
            decoder_config.is_causal = not config.bidirectional
            config.text_config = decoder_config
        self.model = AutoModel.from_config(decoder_config)
        # Some attention backends read the flag of the layer and not of the configuration.
        for module in self.model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = not config.bidirectional
        if config.num_causal_layers:
            keep_causal(self.model.layers[: config.num_causal_layers])
        self.should_pool = add_pooling_layer
        self.latent_attn: LatentAttentionPooling | None = None
        if add_pooling_layer and config.pooling == "latent_attention":
            self.latent_attn = LatentAttentionPooling(
                config.decoder_width, config.num_latents, config.num_latent_heads, config.latent_variant
            )
        self.soft_prompt: SoftPrompt | None = None
        if config.num_soft_tokens:
            self.soft_prompt = SoftPrompt(config.num_soft_tokens, config.decoder_width)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._built = built_settings(config, add_pooling_layer)
        self.post_init()

    @classmethod
    def from_llm(
        cls,
        path: str | os.PathLike[str],
        *,
        adapters: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        num_hidden_layers: int | None = None,
        dtype: torch.dtype | str = torch.float32,
        attn_implementation: str | None = None,
        **config: Any,
    ) -> "LLMBiEncoder":
        """Make an encoder of a language model; its tokenizer comes along. No code of a source is run.

        What ``path`` may be: a causal language model; a ``.gguf`` file, which is dequantized; the public
        LLM2Vec4CXR layout, a flat Llama configuration with ``model.*`` and ``latent_attn.*`` in one
        checkpoint; a sentence-transformers folder, which decides on pooling, normalization, length, cut and
        direction (Qwen3-Embedding stays causal); a LoRA folder, which names one of these as its base and is
        merged into it.

        Of the public layout the head is loaded, too, unless ``pooling`` names one without parameters;
        ``from_pretrained`` would leave it out: such a folder calls itself ``llama``.

        Args:
            path: Folder, Hub id, or ``.gguf`` file.
            adapters: LoRA folders or Hub ids, one or several, merged on top in this order, as LLM2Vec chains
                them; what they name as their base is not looked at.
            num_hidden_layers: Keep only the lowest layers. None keeps all.
            dtype: Precision of the weights; ``"auto"`` is what the source says. ``torch_dtype`` is the same.
            attn_implementation: Attention backend of transformers. None lets it choose.
            **config: Fields of :class:`LLMBiEncoderConfig`; they overrule what the source says. Where neither
                names ``pooling`` or ``latent_variant``, the head is ``prenorm``, which starts as the mean.

        Returns:
            The encoder. A ``v0`` head that is not stored is random, which is logged.

        Raises:
            FileNotFoundError: If ``path`` reads like a local folder and is none.
            RuntimeError: If a layer attends in the other direction, see :meth:`check_direction`.
            TypeError: If ``config`` has a field that does not exist.
            ValueError: If ``path`` holds a model of this package or a pickle, weights are missing, unknown or
                of the wrong shape, an adapter is not plain LoRA or does not fit, or ``num_hidden_layers`` or
                ``dtype`` does not exist.
        """
        llm = read_llm(path, adapters, num_hidden_layers, dtype, config)
        encoder: LLMBiEncoder = cls._from_config(
            llm.config, dtype=llm.decoder.dtype, attn_implementation=attn_implementation
        )
        encoder.model.load_state_dict(llm.decoder.state_dict())
        if encoder.latent_attn is not None and llm.head:
            encoder.latent_attn.load_state_dict(llm.head)
        encoder.tokenizer = llm.tokenizer
        encoder.check_direction()
        return encoder.eval()

    def check_direction(self) -> None:
        """See by experiment that every layer attends as the configuration says: a few short texts.

        Raises:
            RuntimeError: If a layer attends in the other direction.
        """
        num_causal = self.config.num_causal_layers if self.config.bidirectional else len(self.model.layers)
        check_attention_direction(self.model, num_causal)

    def get_input_embeddings(self) -> nn.Module:
        """Token embedding of the decoder."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding of the decoder."""
        self.model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        embed_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode a batch of token ids; the prompt of the configuration is put in front of every text.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, 1 for real tokens, padded on either side. None means no padding.
                Never derive it from the ids: in some models the pad token is also the last real one.
            embed_mask: ``(B, T)``, 1 for the tokens to pool. None pools every real token.
            inputs_embeds: ``(B, T, E)``, token embeddings in place of ``input_ids``.
            output_hidden_states: Whether to return the states of all layers, too. None does as the
                configuration says.
            output_attentions: Likewise of attention maps; only ``attn_implementation="eager"`` has them.

        Returns:
            ``last_hidden_state`` ``(B, T, E)`` of the given tokens, not of the prompt, and ``pooler_output``
            in float32: ``(B, E)``, or what ``embedding_dim`` leaves of it. If asked for, ``hidden_states``:
            token embeddings and the output of each layer, the last behind the norm, ``(B, T, E)``; and
            ``attentions``: of each layer ``(B, H, T, T)``, H heads. All without the prompt.

        Raises:
            RuntimeError: If the configuration was edited where the model cannot follow.
            ValueError: If not exactly one of ``input_ids`` and ``inputs_embeds`` is given, a mask holds
                another number than 0 and 1, or a row has no token to pool; masks are not looked at while
                compiling or tracing.
        """
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        if tokens is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError(
                "forward must have one of input_ids and inputs_embeds, got "
                f"{'neither' if tokens is None else 'both'}. Pass the ids, or embeddings in their place."
            )
        if attention_mask is None:
            attention_mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # a check would end the graph
        if not is_traced:
            check_built(self.config, self._built)
            if self.config.depends_on_batch:
                warn_of_legacy_padding(attention_mask)
        read = read_texts(
            self.model,
            self.config,
            self.soft_prompt,
            {"input_ids": input_ids, "inputs_embeds": inputs_embeds},
            attention_mask,
            inner_outputs(self.config, output_hidden_states, output_attentions),
        )
        hidden = read.last_hidden_state
        assert hidden is not None  # every decoder gives it
        mask = attention_mask if embed_mask is None else embed_mask * attention_mask
        if self.should_pool and not is_traced:
            check_pooled(mask)
        pooled = self._pool(hidden, mask) if self.should_pool else None
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=pooled,
            hidden_states=read.hidden_states,
            attentions=read.attentions,
        )

    def forward_prompted(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        prompt_length: int | torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Run :meth:`forward` without pooling the first tokens; sentence-transformers calls this by name.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, 1 for real tokens. None means no padding.
            prompt_length: Real tokens at the start of every text that are read and not pooled. None pools
                all.

        Returns:
            As :meth:`forward`.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        first = torch.as_tensor(0 if prompt_length is None else prompt_length, device=input_ids.device)
        is_pooled = attention_mask.cumsum(dim=1) > first.reshape(-1, 1)
        return self(input_ids, attention_mask, is_pooled.long(), return_dict=True)

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.latent_attn is not None:
            pooled = self.latent_attn(hidden, mask)
        elif self.config.pooling == "mean":
            pooled = masked_mean(hidden, mask)
        else:
            pooled = outermost_token(hidden, mask, is_last=self.config.pooling == "last_token")
        pooled = pooled[:, : self.config.embedding_dim]
        return F.normalize(pooled, dim=-1) if self.config.normalize else pooled

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer saved beside the weights, loaded at first use; can be set.

        Raises:
            OSError: If there is none.
        """
        if self._tokenizer is None:
            source = self._loaded_from or LoadedFrom.of(self.name_or_path or "", {})
            self.tokenizer = source.load(AutoTokenizer, self)
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

    @torch.no_grad()
    def set_prompt(self, hard_prompt: str = "", soft_prompt: str = "", text_prefix: str = "") -> None:
        r"""Put a prompt in front of every text: fixed words, trained vectors, words read with the text.

        QwenCLIP (arXiv 2511.13876) has ``"Instruct: "``, a sentence of the task and ``"\nQuery:"``. Call it
        after loading: what stood there before is replaced, trained vectors included.

        Args:
            hard_prompt: Fixed words; "" for none. No special token is added.
            soft_prompt: Sentence whose token embeddings the trained vectors start from, one each.
            text_prefix: See :class:`LLMBiEncoderConfig`; "" for none.

        Raises:
            ValueError: If the prompt leaves no room for a text.
        """
        hard_ids, soft_ids = (bare_ids(self.tokenizer, words) for words in (hard_prompt, soft_prompt))
        if len(hard_ids) + len(soft_ids) >= self.config.max_length:
            raise ValueError(
                f"prompt must leave room for a text, got {len(hard_ids)} hard and {len(soft_ids)} soft "
                f"tokens with max_length {self.config.max_length}. Shorten it or raise config.max_length."
            )
        self.config.hard_prompt, self.config.hard_prompt_ids = hard_prompt, hard_ids or None
        self.config.soft_prompt, self.config.num_soft_tokens = soft_prompt, len(soft_ids)
        self.config.text_prefix = text_prefix
        self.soft_prompt = None
        if soft_ids:
            embeds = self.get_input_embeddings()(torch.tensor(soft_ids, device=self.device))
            self.soft_prompt = SoftPrompt.from_embeddings(embeds)
        self._built = {**self._built, **{name: getattr(self.config, name) for name in PROMPT_FIELDS}}

    def tokenize(
        self,
        texts: str | Sequence[str],
        max_length: int | None = None,
        separator: str | None = None,
        instruction: str | None = None,
    ) -> BatchEncoding:
        """Turn texts into the inputs of :meth:`forward`, padded to the longest.

        Args:
            texts: One text or several.
            max_length: Tokens kept, the prompt included; the end of a text is cut. None takes the
                configuration's.
            separator: Splits each text once into an instruction and what is pooled; the separator itself is
                not read. None pools everything but the text prefix.
            instruction: One for all texts, put into ``config.instruction_template``; not pooled.

        Returns:
            ``input_ids``, ``attention_mask`` and, where not all is pooled, ``embed_mask``, on the model's
            device. After a separator or an instruction special tokens are not pooled, but for those that the
            tokenizer puts behind a text where the last token is pooled.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If a text or the separator is empty, separator and instruction come together, an
                instruction leaves no room for its text, or a text is longer than the decoder has positions.
        """
        rows = token_rows(self.tokenizer, texts, self.config, max_length, separator, instruction)
        return pad_rows(self.tokenizer, rows).to(self.device)

    def _embed(self, inputs: BatchEncoding) -> torch.Tensor:
        with in_eval_mode(self):
            pooled: torch.Tensor = self(**inputs, return_dict=True).pooler_output
        return pooled

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str], max_length: int | None = None) -> torch.Tensor:
        """Encode whole texts in one batch, without dropout: ``(B, E)``; special tokens are pooled too."""
        return self._embed(self.tokenize(texts, max_length))

    @torch.no_grad()
    def encode_with_separator(
        self, texts: str | Sequence[str], separator: str | None = None, max_length: int | None = None
    ) -> torch.Tensor:
        """Encode ``instruction + separator + text`` in one batch, without dropout, pooling the text only.

        Args:
            texts: One text or several; one without a separator is pooled whole, special tokens excepted.
            separator: None takes the configuration's.
            max_length: Tokens kept. None takes the configuration's.

        Returns:
            ``(B, E)``.
        """
        separator = self.config.separator if separator is None else separator
        return self._embed(self.tokenize(texts, max_length, separator))

    def compute_similarities(
        self,
        query_text: str,
        candidate_texts: str | Sequence[str],
        separator: str | None = None,
        max_length: int | None = None,
    ) -> torch.Tensor:
        """Cosine similarity of one query with each candidate: ``(N,)`` in [-1, 1]."""
        candidates = as_texts(candidate_texts)
        if not candidates:
            raise ValueError(
                "candidate_texts must not be empty, got []. Pass at least one text to compare with."
            )
        texts = [query_text, *candidates]
        embeds = F.normalize(self.encode_with_separator(texts, separator, max_length), dim=-1)
        return embeds[1:] @ embeds[0]

    @torch.no_grad()
    def encode(  # noqa: PLR0913 -- what sentence-transformers lets a caller choose
        self,
        texts: str | Sequence[str],
        instruction: str | None = None,
        batch_size: int | Literal["auto"] = "auto",
        show_progress: bool = False,
        *,
        max_length: int | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        convert_to_numpy: bool = False,
        precision: Precision = "float32",
        ranges: Any = None,
    ) -> Any:
        """Encode many texts: equal ones once, those of similar length together.

        Runs in this thread and starts no other process; several threads may share the model. Dropout is off,
        whatever mode the model is in. With weights in float32, the vector of a text is the same to 1e-5
        whatever else is encoded with it, unless ``config.depends_on_batch``; in bfloat16 it differs by what
        eight bits of mantissa lose. Load so with ``dtype=torch.bfloat16``: ``.bfloat16()`` would round the
        rotary table, too.

        Args:
            texts: One text or any number of them.
            instruction: Put before every text and not pooled. None pools whole texts.
            batch_size: Texts at a time. ``"auto"`` counts tokens instead: few on a CPU, for its cache, many
                elsewhere, and fewer where memory runs out.
            show_progress: Whether to draw a bar on stderr, which counts texts.
            max_length: Tokens kept. None takes the configuration's.
            normalize: Whether to return unit vectors. None does as the configuration says.
            truncate_dim: Dimensions kept, from the front; for models trained so. None keeps all.
            convert_to_numpy: Whether to return a numpy array, in main memory.
            precision: ``float32``, or ``int8``, ``uint8``, ``binary``, ``ubinary``: see
                :func:`quantize_vectors`.
            ranges: ``(2, E)``, minimum and maximum of each dimension, a tensor or array; for ``int8`` and
                ``uint8`` only.

        Returns:
            ``(N, E)`` in the order of ``texts``, on the model's device.

        Raises:
            TypeError: If ``instruction`` is no string.
            ValueError: If ``batch_size`` is below 1, unit vectors shall be undone, or ``truncate_dim``,
                ``precision`` or ``ranges`` do not fit; see :meth:`tokenize` for the texts.
        """
        if self.config.normalize and normalize is False:
            raise ValueError(
                "normalize must not be False where the configuration normalizes, got False. Set "
                "model.config.normalize = False."
            )
        ranges = None if ranges is None else torch.as_tensor(ranges)
        width = shorten(torch.empty(0, self.config.hidden_size), truncate_dim, False).shape[1]
        check_precision(precision, ranges, width)
        limit = BatchLimit(batch_size, self.device)

        def read(some: Sequence[str]) -> list[TokenRow]:
            return token_rows(self.tokenizer, some, self.config, max_length, instruction=instruction)

        def embed(rows: list[TokenRow]) -> torch.Tensor:
            return self._embed(pad_rows(self.tokenizer, rows).to(self.device))

        with OneDNNLinears():
            vectors = encode_distinct(as_texts(texts), read, embed, limit, show_progress)
        vectors = shorten(vectors, truncate_dim, self.config.normalize or bool(normalize))
        vectors = quantize_vectors(vectors, precision, ranges)
        return vectors.cpu().numpy() if convert_to_numpy else vectors

    def quantize_weights(self, precision: Literal["int8"] = "int8") -> "LLMBiEncoder":
        """Store linear layers of the decoder in 8 bits, in place: for inference on a CPU, in less memory.

        The lowest two fifths of the layers stay as they are, as do the token embedding and the pooling head:
        errors below grow in all layers above. The weights of the decoder are frozen from then on; no gradient
        passes to a prompt before it, while a pooling head behind it can still be trained. Nothing of the
        model can be saved.

        Args:
            precision: ``"int8"``; there is no other yet.

        Returns:
            The model itself.

        Raises:
            RuntimeError: If this CPU multiplies numbers of 8 bits wrongly, as those without VNNI do.
            ValueError: If ``precision`` is another, the model is not on a CPU or is quantized already, or an
                adapter is attached. The model is as before.
        """
        if precision != "int8":
            raise ValueError(f"precision must be 'int8', got {precision!r}. Weights have 8 bits or all.")
        quantize_linears(self.model)
        return self
