"""Tiny towers of several families, and dual towers of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    PreTrainedModel,
    Qwen3Config,
    SiglipVisionConfig,
    ViTConfig,
)

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
PATCHES = {**SMALL, "image_size": 8, "patch_size": 4}
CONFIGS = {
    "vit": ViTConfig(**PATCHES),
    "clip": CLIPVisionConfig(**PATCHES, projection_dim=8),
    "siglip": SiglipVisionConfig(**PATCHES),
    "dinov2": Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    ),
    "bert": BertConfig(vocab_size=400, **SMALL),
    "qwen3": Qwen3Config(vocab_size=400, **SMALL, head_dim=8, num_key_value_heads=2),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=8),
}


@pytest.fixture
def make_tower(tiny_llm_folder) -> Callable[[str], PreTrainedModel]:
    """A tower by its family; ``ct3d`` and ``llm`` are ours, the latter with a prompt of two vectors."""

    def make(kind: str) -> PreTrainedModel:
        torch.manual_seed(5)
        if kind == "ct3d":
            shape = {"hidden_sizes": [8, 12, 16], "layers": [1, 2, 1], "image_size": [8, 8, 8]}
            return CT3DVisionModel(CT3DVisionConfig(**shape, pooling="gated"))
        if kind == "llm":
            encoder = LLMBiEncoder.from_llm(
                tiny_llm_folder, latent_variant="v0", num_latents=6, num_latent_heads=4, max_length=64
            )
            encoder.set_prompt("Describe", "no nodule")
            return encoder
        return AutoModel.from_config(CONFIGS[kind])

    return make


@pytest.fixture
def make_dual(make_tower) -> Callable[..., MedCLIPModel]:
    """A dual tower of two families with a finding head, in eval mode."""

    def make(vision: str, text: str, **config: Any) -> MedCLIPModel:
        pooling = {"bert": "cls", "qwen3": "last"}.get(text, "pooler")
        settings = {"projection_dim": 6, "text_pooling": pooling, "findings": ["nodule"], **config}
        return MedCLIPModel.from_towers(make_tower(vision), make_tower(text), **settings).eval()

    return make
