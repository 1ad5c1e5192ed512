"""Tells the folder of a trained encoder, which goes on, from that of a language model, which is wrapped."""

import json
from pathlib import Path

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig


def is_encoder_folder(path: str) -> bool:
    """Whether a path is a local folder of this package's text encoder."""
    config = Path(path) / "config.json"
    if not config.is_file():
        return False
    return bool(
        json.loads(config.read_text(encoding="utf-8")).get("model_type") == LLMBiEncoderConfig.model_type
    )
