"""What the models of the report encoder share: first weights, loading, saving, and a fixed configuration.

An edit of a configuration whose model is built already would do nothing, or worse: change the vectors of the
model that is saved, and not of the one in memory.
"""

import copy
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from ...configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from ..llm_sources.modeling_llm_lora import check_adapter_has_base
from ..modeling_latent_attention import LatentAttentionPooling
from .modeling_cpu_linear import refuse_int8
from .modeling_loaded_from import LoadedFrom
from .modeling_soft_prompt import SoftPrompt

HEAD_FIELDS = ("latent_variant", "num_latents", "num_latent_heads")
FINDING_FIELDS = ("finding_pooling", "finding_layers")
PROMPT_FIELDS = ("hard_prompt", "hard_prompt_ids", "soft_prompt", "num_soft_tokens")


class LLMBiEncoderPreTrainedModel(PreTrainedModel):
    """What the models of this family share."""

    config: LLMBiEncoderConfig
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
    _keep_in_fp32_modules_strict = ["soft_prompt", "finding_attention"]
    _no_split_modules = ["LatentAttentionPooling"]

    _loaded_from: LoadedFrom | None = None
    _built: Mapping[str, Any] = MappingProxyType({})  # what the configuration said at construction

    def post_init(self) -> None:
        """Finish construction; of the parts that stay float32, only those of this configuration are named."""
        parts = {part for name, _ in self.named_parameters() for part in name.split(".")}
        self._keep_in_fp32_modules_strict = [x for x in self._keep_in_fp32_modules_strict if x in parts]
        super().post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load as transformers does, and remember where the tokenizer is."""
        path = pretrained_model_name_or_path
        source = None if path is None else LoadedFrom.of(path, kwargs)
        loaded: Any = super().from_pretrained(path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for module in model.modules():
            if isinstance(module, LLMBiEncoderPreTrainedModel):
                module._loaded_from = source
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save weights and configuration; with an adapter of peft, that alone, see check_adapter_has_base.

        Raises:
            RuntimeError: If the configuration was edited so that it does not describe the weights, or the
                weights are quantized; nothing is written then.
        """
        check_adapter_has_base(self)
        for module in self.modules():
            if isinstance(module, LLMBiEncoderPreTrainedModel):
                check_built(module.config, module._built)
        refuse_int8(self)
        super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LatentAttentionPooling):
            init.normal_(module.latents)
            if module.variant == "prenorm":
                for parameter in module.output_parameters():
                    init.zeros_(parameter)
        if isinstance(module, SoftPrompt):
            decoder_config: Any = self.config.text_config
            init.normal_(module.weight, std=getattr(decoder_config, "initializer_range", 0.02))


def built_settings(config: LLMBiEncoderConfig, has_pooling: bool) -> dict[str, Any]:
    """Copy what a model is built of; the other fields are read at every call and may be edited."""
    names: tuple[str, ...] = ("bidirectional", "num_causal_layers", *PROMPT_FIELDS)
    if has_pooling:
        names += ("pooling", *(HEAD_FIELDS if config.pooling == "latent_attention" else ()))
    return {name: copy.copy(getattr(config, name)) for name in names}


def check_built(config: LLMBiEncoderConfig, built: Mapping[str, Any]) -> None:
    """Compare a configuration with what its model was built of.

    Raises:
        RuntimeError: If a field differs; poolings without weights may be exchanged.
    """
    for name, value in built.items():
        now = getattr(config, name)
        if now == value or (name == "pooling" and "latent_attention" not in (now, value)):
            continue
        if name in PROMPT_FIELDS:
            advice = "Set it back and call set_prompt, which knows the tokenizer."
        else:
            advice = f"Set it back, and load the saved model with from_pretrained(folder, {name}={now!r})."
        raise RuntimeError(
            f"config.{name} must stay {value!r}, as the model was built, got {now!r}. {advice}"
        )
