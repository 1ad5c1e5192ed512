from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<bos>{{ message['role'] }}\n{{ message['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


def _tiny_llm(model_type: str, **settings: Any) -> PreTrainedModel:
    """Random weights, large enough that differences between texts show; reads ``tiny_tokenizer``."""
    config = AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": 400,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 4096,
            "initializer_range": 0.3,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        | settings,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def tiny_llm() -> Callable[..., PreTrainedModel]:
    """Build a random causal language model: its model type, and fields of its configuration."""
    return _tiny_llm


@pytest.fixture
def chat_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """``tiny_tokenizer`` with a chat template whose turns begin with <bos> and end with <eos>."""
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    return tiny_tokenizer


@pytest.fixture
def chat_llm_folder(tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random Llama with a context of 4,096 tokens and its chat tokenizer, as a Hub folder."""
    _tiny_llm("llama").save_pretrained(tmp_path / "tiny-chat-llm")
    chat_tokenizer.save_pretrained(tmp_path / "tiny-chat-llm")
    return tmp_path / "tiny-chat-llm"
