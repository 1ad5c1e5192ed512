"""Configuration of the report encoder: a decoder LLM, its attention direction and its pooling."""

import copy
import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class LLMBiEncoderConfig(PreTrainedConfig):
    r"""Shape and reading rules of an :class:`LLMBiEncoder`.

    Everything here changes the vector of a text, so everything here ships with the weights.

    Args:
        text_config: Configuration of the decoder, of any causal family of transformers (Llama, Qwen3, ...).
            None is a default Llama.
        bidirectional: True lets every token see the whole text (LLM2Vec, arXiv 2404.05961); False keeps the
            decoder causal, as Qwen3-Embedding is used.
        num_causal_layers: Lowest layers that look back only although ``bidirectional`` is true: those of a
            causal language model that are not trained further. 0 is none.
        pooling: ``latent_attention`` (arXiv 2509.15234), ``mean``, ``last_token`` or ``first_token``.
        latent_variant: ``v0`` is the head of the public LLM2Vec4CXR weights. ``prenorm`` adds norms and
            residuals and starts out equal to mean pooling.
        num_latents: Latent vectors of the latent-attention head.
        num_latent_heads: Its attention heads; must divide the width of the decoder.
        max_length: Tokens kept of a text when the caller does not say.
        separator: What stands between an instruction and the text it is about.
        mask_mode: Which tokens are pooled after a separator: ``exact`` (every token that overlaps the text)
            or ``legacy_suffix`` (the last n tokens, n counted on the text alone, as the public code does).
        instruction_template: What an instruction becomes before it is put in front of a text. Qwen3-Embedding
            was trained with ``"Instruct: {instruction}\nQuery:"``.
        hard_prompt: Fixed words in front of every text, of which ``hard_prompt_ids`` are the tokens. Both are
            written by :meth:`LLMBiEncoder.set_prompt`, as is ``soft_prompt``.
        hard_prompt_ids: Tokens of ``hard_prompt``. None without one.
        num_soft_tokens: Trained vectors between the hard prompt and the text (QwenCLIP, arXiv 2511.13876).
        soft_prompt: The sentence that the trained vectors started from; "" for random ones.
        prompt_padding: Where padding stands: ``contiguous`` never lets it come between prompt and text.
            ``legacy_middle`` is the published code of QwenCLIP: prompt, padding, text, and positions that
            count the padding, so that a vector depends on the longest text of its batch. For comparisons
            with it only; it changes nothing without a prompt, or for one text at a time.
        text_prefix: Words in front of every text, tokenized with it: whatever the tokenizer puts at the start
            comes before them. No part of the prompt is pooled, this one included.
        embedding_dim: Leading numbers of the pooled vector that are kept, for weights trained so (Matryoshka,
            arXiv 2205.13147). None keeps all.
        normalize: Whether pooled vectors are scaled to length 1, after the cut.
        mask_token_id: What stood in the place of hidden tokens in masked training. None without it.
        finding_pooling: Of a labeler: whether a finding attends over the whole text (``tokens``), or within
            each sentence, the largest of whose scores then counts (``sentences``).
        finding_layers: Of a labeler: how many layers are below each of the states that it reads, such as
            ``[20, 30]`` of 30; 0 is the token embedding, all of them the output of the decoder. None is
            that alone.
        label_temperature: Of a labeler: P(present) is ``sigmoid(logits / label_temperature)``. The logits
            of the model stay raw. Training fits it on held-out reports; 1.0 where there are none.

    Raises:
        StrictDataclassClassValidationError: If ``num_latent_heads`` does not divide the width of the decoder,
            a size is not positive or does not fit the decoder, a prompt comes without its tokens or leaves no
            room, the template has no place for the instruction, or ``label_temperature`` is not above 0.
            ``@strict`` wraps the ValueErrors in it.
    """

    model_type = "llm_biencoder"
    # As wide as the longest text of a batch: Trainer could not stack them when it evaluates.
    keys_to_ignore_at_inference = ["token_weights", "log_normalizer"]
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    bidirectional: bool = True
    num_causal_layers: int = 0
    pooling: Literal["latent_attention", "mean", "last_token", "first_token"] = "latent_attention"
    latent_variant: Literal["v0", "prenorm"] = "v0"
    num_latents: int = 512
    num_latent_heads: int = 8
    max_length: int = 512
    separator: str = "!@#$%^&*()"
    mask_mode: Literal["exact", "legacy_suffix"] = "exact"
    instruction_template: str = "{instruction}"
    hard_prompt: str = ""
    hard_prompt_ids: list[int] | None = None
    num_soft_tokens: int = 0
    soft_prompt: str = ""
    prompt_padding: Literal["contiguous", "legacy_middle"] = "contiguous"
    text_prefix: str = ""
    embedding_dim: int | None = None
    normalize: bool = False
    mask_token_id: int | None = None
    finding_pooling: Literal["tokens", "sentences"] = "tokens"
    finding_layers: list[int] | None = None
    label_temperature: float = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # A copy: the caller's object may belong to a second encoder, which must keep its direction.
        self.text_config = copy.deepcopy(self.text_config)
        # transformers reads the attention direction from the decoder's own configuration, from 5.2 on.
        self.text_config.is_causal = not self.bidirectional  # type: ignore[union-attr]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read ``config.json``, with what the caller of ``from_pretrained`` wants changed.

        Raises:
            ValueError: If it is that of another model, whose fields would be stored and mean nothing here, or
                the words of a prompt shall change: its tokens would stay as they were.
        """
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"path must hold a report encoder, got a model of type {found!r}. Make an encoder of a "
                "language model with LLMBiEncoder.from_llm."
            )
        for name in ("hard_prompt", "hard_prompt_ids", "soft_prompt"):
            if name in kwargs and kwargs[name] != config_dict.get(name, getattr(cls, name)):
                raise ValueError(
                    f"{name} must not change while loading, got {kwargs[name]!r}. Load without it, and call "
                    "set_prompt of the encoder, which knows the tokenizer."
                )
        return super().from_dict(config_dict, **kwargs)

    @property
    def decoder_width(self) -> int:
        """Size of a token state."""
        assert isinstance(self.text_config, PreTrainedConfig)  # __post_init__ resolved it
        width: int = self.text_config.hidden_size
        return width

    @property
    def hidden_size(self) -> int:
        """Size of the pooled embedding."""
        return self.decoder_width if self.embedding_dim is None else self.embedding_dim

    @property
    def num_prompt_tokens(self) -> int:
        """Hard and soft tokens in front of every text; ``max_length`` counts them."""
        return len(self.hard_prompt_ids or []) + self.num_soft_tokens

    @property
    def depends_on_batch(self) -> bool:
        """Whether the vector of a text depends on the texts beside it, so that it must not be stored."""
        return self.prompt_padding == "legacy_middle" and self.num_prompt_tokens > 0

    def validate_head(self) -> None:
        for name in ("num_latents", "num_latent_heads", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}. Use 1 or more.")
        if self.pooling == "latent_attention" and self.decoder_width % self.num_latent_heads:
            raise ValueError(
                f"num_latent_heads must divide the decoder width {self.decoder_width}, got "
                f"{self.num_latent_heads}. Choose a divisor."
            )
        if self.embedding_dim is not None and not 1 <= self.embedding_dim <= self.decoder_width:
            raise ValueError(
                f"embedding_dim must be between 1 and the decoder width {self.decoder_width}, got "
                f"{self.embedding_dim}. Leave it out to keep every number."
            )

    def validate_direction(self) -> None:
        depth = getattr(self.text_config, "num_hidden_layers", None)
        if not 0 <= self.num_causal_layers <= (self.num_causal_layers if depth is None else depth):
            raise ValueError(
                f"num_causal_layers must be between 0 and the {depth} layers of the decoder, got "
                f"{self.num_causal_layers}. Use 0 to let every layer look ahead."
            )
        if self.num_causal_layers and not self.bidirectional:
            raise ValueError(
                f"num_causal_layers must be 0 where bidirectional is false, got {self.num_causal_layers}. "
                "Every layer of such a decoder is causal."
            )

    def validate_reading(self) -> None:
        if not self.separator:
            raise ValueError("separator must not be empty, got ''. Use a string no report contains.")
        if "{instruction}" not in self.instruction_template:
            raise ValueError(
                f"instruction_template must contain {{instruction}}, got {self.instruction_template!r}. "
                "Mark where the instruction belongs."
            )

    def validate_finding_layers(self) -> None:
        if self.finding_layers is None:
            return
        depth = getattr(self.text_config, "num_hidden_layers", None)
        chosen = self.finding_layers
        if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or (depth and chosen[-1] > depth):
            raise ValueError(
                f"finding_layers must rise from 0 to at most {depth}, the layers of the decoder, got "
                f"{chosen}. Leave it out to read the output alone."
            )
        if self.num_prompt_tokens and chosen != [depth]:
            raise ValueError(
                f"finding_layers must be left out where there is a prompt, got {chosen} and "
                f"{self.num_prompt_tokens} prompt tokens. Use text_prefix in its place."
            )

    def validate_labels(self) -> None:
        if not 0 < self.label_temperature < math.inf:
            raise ValueError(
                f"label_temperature must be above 0 and finite, got {self.label_temperature}. "
                "Use 1.0 where none was fitted."
            )

    def validate_prompt(self) -> None:
        if self.num_soft_tokens < 0:
            raise ValueError(
                f"num_soft_tokens must not be negative, got {self.num_soft_tokens}. Use 0 for none."
            )
        if bool(self.hard_prompt) != bool(self.hard_prompt_ids):
            raise ValueError(
                f"hard_prompt must come with its tokens, got {self.hard_prompt!r} and hard_prompt_ids "
                f"{self.hard_prompt_ids}. Call set_prompt of the loaded encoder, which knows the tokenizer."
            )
        if self.soft_prompt and not self.num_soft_tokens:
            raise ValueError(
                f"soft_prompt must come with its number of tokens, got {self.soft_prompt!r} and "
                "num_soft_tokens 0. Call set_prompt of the loaded encoder, which knows the tokenizer."
            )
        if self.num_prompt_tokens >= self.max_length:
            raise ValueError(
                f"max_length must leave room for a text, got {self.max_length} with {self.num_prompt_tokens} "
                "prompt tokens. Raise it or shorten the prompt."
            )
