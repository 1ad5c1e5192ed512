"""Configuration of the report encoder: a decoder LLM, its attention direction and its pooling."""

import copy
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class LLMBiEncoderConfig(PreTrainedConfig):
    """Shape and reading rules of an :class:`LLMBiEncoder`.

    Everything here changes the vector of a text, so everything here ships with the weights.

    Args:
        text_config: Configuration of the decoder, of any causal family of transformers (Llama, Qwen3, ...).
            None is a default Llama.
        bidirectional: True lets every token see the whole text (LLM2Vec, arXiv 2404.05961); False keeps the
            decoder causal, as Qwen3-Embedding is used.
        pooling: ``latent_attention`` (arXiv 2509.15234), ``mean``, ``last_token`` or ``first_token``.
        latent_variant: ``v0`` is the head of the public LLM2Vec4CXR weights. ``prenorm`` adds norms and
            residuals and starts out equal to mean pooling.
        num_latents: Latent vectors of the latent-attention head.
        num_latent_heads: Its attention heads; must divide the width of the decoder.
        max_length: Tokens kept of a text when the caller does not say.
        separator: What stands between an instruction and the text it is about.
        mask_mode: Which tokens are pooled after a separator: ``exact`` (every token that overlaps the text)
            or ``legacy_suffix`` (the last n tokens, n counted on the text alone, as the public code does).

    Raises:
        StrictDataclassClassValidationError: If ``num_latent_heads`` does not divide the width of the decoder,
            or a size is not positive. ``@strict`` wraps the ValueError below in it.
    """

    model_type = "llm_biencoder"
    # As wide as the longest text of a batch: Trainer could not stack them when it evaluates.
    keys_to_ignore_at_inference = ["token_weights"]
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    bidirectional: bool = True
    pooling: Literal["latent_attention", "mean", "last_token", "first_token"] = "latent_attention"
    latent_variant: Literal["v0", "prenorm"] = "v0"
    num_latents: int = 512
    num_latent_heads: int = 8
    max_length: int = 512
    separator: str = "!@#$%^&*()"
    mask_mode: Literal["exact", "legacy_suffix"] = "exact"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # A copy: the caller's object may belong to a second encoder, which must keep its direction.
        self.text_config = copy.deepcopy(self.text_config)
        # transformers reads the attention direction from the decoder's own configuration, from 5.2 on.
        self.text_config.is_causal = not self.bidirectional  # type: ignore[union-attr]

    @property
    def hidden_size(self) -> int:
        """Size of the pooled embedding."""
        assert isinstance(self.text_config, PreTrainedConfig)  # __post_init__ resolved it
        width: int = self.text_config.hidden_size
        return width

    def validate_head(self) -> None:
        for name in ("num_latents", "num_latent_heads", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}. Use 1 or more.")
        if self.pooling == "latent_attention" and self.hidden_size % self.num_latent_heads:
            raise ValueError(
                f"num_latent_heads must divide the decoder width {self.hidden_size}, got "
                f"{self.num_latent_heads}. Choose a divisor."
            )
        if not self.separator:
            raise ValueError("separator must not be empty, got ''. Use a string no report contains.")
