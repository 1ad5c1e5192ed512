"""A folder in the layout of the public LLM2Vec4CXR, and the encoder it was made from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, PreTrainedTokenizerFast

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

ROPE_SCALING = {
    "factor": 4.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
# As transformers 4.44 wrote it: flat, torch_dtype, and the rotary fields side by side.
PUBLIC_CONFIG = {
    "architectures": ["LLM2Vec4CXRModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoModel": "modeling_llm2vec4cxr.LLM2Vec4CXRModel"},
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": ROPE_SCALING,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.2",
    "use_cache": True,
    "vocab_size": 309,
}
REMOTE_CODE = "raise SystemExit('remote code was executed')\n"


@pytest.fixture
def public_config() -> dict[str, Any]:
    """Flat ``config.json`` of the public layout."""
    return dict(PUBLIC_CONFIG)


@pytest.fixture
def public_encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> LLMBiEncoder:
    """What the public folder holds, built by hand."""
    fields = {name: value for name, value in PUBLIC_CONFIG.items() if name not in ("torch_dtype", "auto_map")}
    config = LLMBiEncoderConfig(text_config=LlamaConfig(**fields), num_latents=6)
    encoder = LLMBiEncoder(config).eval()
    encoder.tokenizer = tiny_tokenizer
    return encoder


@pytest.fixture
def write_public_folder(
    tmp_path: Path, public_encoder: LLMBiEncoder, tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Path]:
    """Write the folder; ``change`` edits the tensors before, ``num_shards`` splits them."""

    def write(
        change: Callable[[dict[str, torch.Tensor]], None] = lambda tensors: None,
        num_shards: int = 1,
        config: dict[str, object] = PUBLIC_CONFIG,
        name: str = "public",
    ) -> Path:
        folder = tmp_path / name
        tiny_tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "modeling_llm2vec4cxr.py").write_text(REMOTE_CODE)
        tensors = {name: tensor.clone() for name, tensor in public_encoder.state_dict().items()}
        change(tensors)
        if num_shards == 1:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            return folder
        weight_map = {}
        for shard in range(num_shards):
            file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
            part = {key: tensors[key] for key in sorted(tensors)[shard::num_shards]}
            save_file(part, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )
        return folder

    return write
