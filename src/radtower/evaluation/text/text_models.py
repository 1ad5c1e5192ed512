"""Model folders -> scorers: our encoders, sentence-transformers folders, and an LLM as it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from radtower.evaluation.text.scorers import EmbeddingScorer
from radtower.modeling.llm_sources.modeling_llm_files import path_inside
from radtower.modeling.modeling_latent_attention import masked_mean
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.safe_loading import load_model

OWN_TYPES = ("llm_biencoder", "medclip")
_BATCH_SIZE = 32
_POOLINGS = ("pooling_mode_mean_tokens", "pooling_mode_cls_token")


def load_scorer(
    model: str | Path, instruction: str | None = None, *, is_remote_code_trusted: bool = False
) -> EmbeddingScorer:
    """Load a text encoder or dual tower of ours, or a sentence-transformers folder.

    Args:
        model: Folder, or Hub id of one of ours.
        instruction: Put before every query, and not before the gallery; for our text encoder only.
        is_remote_code_trusted: Whether code in a sentence-transformers folder may be run.

    Raises:
        TypeError: If the model has no text encoder, or an instruction is given to one that takes none.
        ValueError: If a sentence-transformers folder has modules other than a transformer with mean or
            first-token pooling.
    """
    folder = Path(model)
    if (folder / "modules.json").is_file() and _model_type(folder) not in OWN_TYPES:
        if instruction is not None:
            raise TypeError(f"instruction must be None for {folder.name}, got a text. It takes none.")
        return EmbeddingScorer(_name_of(model), _sentence_transformer(folder, is_remote_code_trusted))
    encoder: Any = load_model(AutoModel, model, dtype=torch.float32).eval()
    if isinstance(encoder, LLMBiEncoder):
        return biencoder_scorer(_name_of(model), encoder, instruction)
    if not isinstance(encoder, MedCLIPModel) or instruction is not None:
        raise TypeError(
            f"model must be a text encoder or a dual tower (without instruction), got "
            f"{type(encoder).__name__} and instruction {instruction!r}. Use a folder of `radtower train`."
        )
    return EmbeddingScorer(_name_of(model), lambda texts: encoder.encode_text(texts).cpu().numpy())


def biencoder_scorer(name: str, encoder: LLMBiEncoder, instruction: str | None = None) -> EmbeddingScorer:
    """Wrap a text encoder in memory; see ``load_scorer``."""

    def embed(texts: list[str], before: str | None = None) -> np.ndarray:
        return encoder.encode(texts, instruction=before, show_progress=len(texts) > _BATCH_SIZE).cpu().numpy()

    if instruction is None:
        return EmbeddingScorer(name, embed)
    return EmbeddingScorer(name, embed, lambda texts: embed(texts, instruction))


def untrained_scorer(llm: str | Path) -> EmbeddingScorer:
    """Wrap an LLM as it was released, causal, with the mean over its tokens: what training starts from."""
    encoder = LLMBiEncoder.from_llm(llm, pooling="mean", bidirectional=False)
    return biencoder_scorer(f"untrained-{_name_of(llm)}", encoder)


def _sentence_transformer(folder: Path, is_remote_code_trusted: bool) -> Callable[[list[str]], np.ndarray]:
    """The vectors that sentence-transformers gives, without it, up to their length."""
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        raise ValueError(
            f"{folder.name} must be a Transformer, Pooling and at most Normalize, got {kinds}. "
            "Use another baseline."
        )
    pooling = _read(path_inside(folder, modules[1]["path"]) / "config.json")
    chosen = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(_POOLINGS)}, got {chosen} in {folder.name}.")
    inner = path_inside(folder, modules[0]["path"])
    settings = inner / "sentence_bert_config.json"
    max_length = _read(settings)["max_seq_length"] if settings.is_file() else None
    tokenizer = AutoTokenizer.from_pretrained(inner, trust_remote_code=is_remote_code_trusted)
    model = load_model(
        AutoModel, inner, is_remote_code_trusted=is_remote_code_trusted, dtype=torch.float32
    ).eval()

    @torch.no_grad()
    def embed(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors = torch.empty(len(texts), model.config.hidden_size)
        for start in range(0, len(order), _BATCH_SIZE):
            rows = order[start : start + _BATCH_SIZE]
            inputs = tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
            hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"]
            if chosen == ["pooling_mode_mean_tokens"]:
                vectors[rows] = masked_mean(hidden, mask)
            else:
                vectors[rows] = hidden[torch.arange(len(rows)), mask.argmax(dim=1)]
        return F.normalize(vectors, dim=-1).numpy()

    return embed


def _model_type(folder: Path) -> str | None:
    path = folder / "config.json"
    return _read(path).get("model_type") if path.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _name_of(model: str | Path) -> str:
    path = Path(model)
    # A folder named "model" says less than the one around it.
    return path.resolve().parent.name if path.name == "model" else path.name
