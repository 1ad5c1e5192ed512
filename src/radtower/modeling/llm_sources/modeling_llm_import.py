"""Read a language model as the decoder of a report encoder, strictly, whatever layout it comes in."""

import dataclasses
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ...configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from ..modeling_latent_attention import LatentAttentionPooling
from .modeling_llm_files import local_folder, read_tensors, tensor_shapes, weight_files
from .modeling_llm_lora import base_of, is_adapter, merge_adapter
from .modeling_llm_st_folder import is_st_folder, st_backbone, st_fields

logger = logging.get_logger(__name__)
# Wrapping one of these would nest an encoder in an encoder, with a fresh random head around a trained one.
OWN_MODEL_TYPES = ("ct3d_vision", "llm_biencoder", "medclip")
HEAD_PREFIX = "latent_attn."
PUBLIC_ARCHITECTURE = "LLM2Vec4CXRModel"
# Heads that an encoder has no use for: of the language model (embed_out is that of GPT-NeoX, decoder that of
# ModernBERT), of a classifier, of BERT.
DROPPED_PREFIXES = (
    "lm_head.",
    "embed_out.",
    "decoder.weight",
    "decoder.bias",
    "score.",
    "cls.",
    "pooler.",
)
# Fields of the configuration that the caller may set beside those declared, all of PreTrainedConfig.
INHERITED_FIELDS = ("num_labels",)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.txt")


@dataclass(frozen=True, kw_only=True)
class LLMSource:
    """Where the parts of an encoder lie; found without reading a weight.

    Args:
        folder: Holds configuration and weights of the decoder.
        config: Of the decoder.
        gguf_file: Name of a GGUF file in ``folder``; None for safetensors.
        tokenizer_folder: Holds the tokenizer.
        fields: What the source says about the encoder, as fields of :class:`LLMBiEncoderConfig`.
        files: Weights of the public LLM2Vec4CXR layout, head included; empty for any other layout.
        adapters: LoRA folders, merged in this order.
    """

    folder: Path
    config: PreTrainedConfig
    gguf_file: str | None = None
    tokenizer_folder: Path
    fields: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    adapters: list[Path] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LLM:
    """What an encoder is made of.

    Args:
        config: Of the encoder.
        decoder: Without a language-model head.
        head: State dict of a stored pooling head; empty where there is none.
        tokenizer: Of the decoder.
    """

    config: LLMBiEncoderConfig
    decoder: PreTrainedModel
    head: dict[str, torch.Tensor]
    tokenizer: PreTrainedTokenizerBase


def read_llm(
    path: str | os.PathLike[str],
    adapters: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    num_hidden_layers: int | None,
    dtype: torch.dtype | str,
    fields: dict[str, Any],
) -> LLM:
    """Read the parts of an encoder; see ``LLMBiEncoder.from_llm``, which puts them together.

    Args:
        path: Folder, Hub id, or ``.gguf`` file.
        adapters: LoRA folders on top, one or several.
        num_hidden_layers: Keep only the lowest layers. None keeps all.
        dtype: Precision of the decoder, by name or not; ``"auto"`` is what the source says.
        fields: Fields of :class:`LLMBiEncoderConfig`, as the caller set them, and ``torch_dtype``.
    """
    fields = dict(fields)
    chosen_dtype = check_dtype(fields.pop("torch_dtype", dtype))
    check_fields(fields)
    source = find_llm(path, [adapters] if isinstance(adapters, str | os.PathLike) else adapters)
    settings = merged_fields(source, fields)
    # Before the weights are read: a mistaken setting should not cost minutes.
    LLMBiEncoderConfig(text_config=source.config, **settings)
    decoder, head = read_decoder(source, num_hidden_layers, chosen_dtype)
    text_config = decoder.config.to_dict()
    # With the first, reloading would look for the GGUF file again; with the second, for remote code. The
    # third is a path of this machine.
    for name in ("quantization_config", "auto_map", "_name_or_path"):
        text_config.pop(name, None)
    config = LLMBiEncoderConfig(text_config=text_config, **settings)
    if config.pooling == "latent_attention" and config.latent_variant == "v0" and not head:
        logger.warning(
            "The source stores no pooling head, and latent_variant 'v0' starts as a random one: its vectors "
            "mean nothing before training. Take latent_variant='prenorm', which starts as the mean, or "
            "pooling='mean'."
        )
    return LLM(config=config, decoder=decoder, head=head, tokenizer=read_tokenizer(source))


def check_dtype(dtype: torch.dtype | str) -> torch.dtype | None:
    """Give the precision that is asked for; None is what the source says, called ``"auto"``.

    Raises:
        ValueError: If there is no such floating-point type.
    """
    if dtype == "auto":
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype must be a floating-point type of torch, its name or 'auto', got {dtype!r}. "
            "Take torch.float32 or torch.bfloat16."
        )
    return found


def check_fields(fields: dict[str, Any]) -> None:
    """Refuse what is no field of :class:`LLMBiEncoderConfig`, which would otherwise be stored and ignored.

    Raises:
        TypeError: If a field is unknown, or comes from the language model.
    """
    declared = [entry.name for entry in dataclasses.fields(LLMBiEncoderConfig)]
    known = sorted({*declared, *INHERITED_FIELDS} - {"text_config"})
    for name in fields:
        if name == "device_map":
            raise TypeError(
                f"device_map must be left out, got {fields[name]!r}. An encoder is read on the CPU: move it "
                "with .to(device)."
            )
        if name == "text_config":
            raise TypeError("fields must not hold text_config, got one. It is read from path: leave it out.")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            advice = f"Did you mean {close[0]}?" if close else f"Use one of {', '.join(known)}."
            raise TypeError(f"fields must belong to LLMBiEncoderConfig, got {name!r}. {advice}")


def find_llm(path: str | os.PathLike[str], adapters: Sequence[str | os.PathLike[str]] = ()) -> LLMSource:
    """Find the parts of a language model and what it says about its use.

    Args:
        path: Folder of a model or of sentence-transformers, Hub id, a ``.gguf`` file, or a LoRA adapter,
            which names its base model.
        adapters: LoRA adapters on top, in this order.

    Raises:
        FileNotFoundError: If a path reads like a local folder and is none.
        ValueError: If it holds a model of this package, pickled weights, or a head of which tensors are
            missing, unknown or of the wrong shape, or a sentence-transformers module without counterpart; if
            one of ``adapters`` is none.
    """
    source = _find(path)
    for adapter in adapters:
        folder = local_folder(adapter)
        if not is_adapter(folder):
            raise ValueError(f"adapters must be LoRA folders, got {folder}. Pass a model as path.")
        source = _add_adapter(source, folder)
    return source


def _add_adapter(source: LLMSource, folder: Path) -> LLMSource:
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    tokenizer_folder = folder if has_tokenizer else source.tokenizer_folder
    return dataclasses.replace(source, adapters=[*source.adapters, folder], tokenizer_folder=tokenizer_folder)


def _find(path: str | os.PathLike[str]) -> LLMSource:
    if str(path).endswith(".gguf"):
        folder, gguf_file = local_folder(Path(path).expanduser().parent), Path(path).name
        config = AutoConfig.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)
        return LLMSource(folder=folder, config=config, gguf_file=gguf_file, tokenizer_folder=folder)
    folder = local_folder(path)
    if is_st_folder(folder):
        return _find_in_st(folder)
    return _find_backbone(folder)


def _find_backbone(folder: Path) -> LLMSource:
    if is_adapter(folder):
        return _add_adapter(_find(base_of(folder)), folder)
    if not (folder / "config.json").is_file():
        gguf_files = sorted(folder.glob("*.gguf"))
        if len(gguf_files) > 1:
            raise ValueError(
                f"path must be one .gguf file where a folder has several, got {len(gguf_files)} in {folder}, "
                f"such as {gguf_files[0].name}. Point to the file."
            )
        if gguf_files:
            return _find(gguf_files[0])
    config = _decoder_config(folder)
    source = LLMSource(folder=folder, config=config, tokenizer_folder=folder)
    files = weight_files(folder)
    shapes = tensor_shapes(files)
    if PUBLIC_ARCHITECTURE in (config.architectures or []) or any(n.startswith(HEAD_PREFIX) for n in shapes):
        check_public_layout(shapes, config)
        fields = {
            "pooling": "latent_attention",
            "latent_variant": "v0",
            "num_latents": shapes[HEAD_PREFIX + "latents"][0],
        }
        source = dataclasses.replace(source, fields=fields, files=files)
    return source


def _find_in_st(folder: Path) -> LLMSource:
    source = _find_backbone(st_backbone(folder))
    fields = st_fields(folder, getattr(source.config, "max_position_embeddings", None))
    # Qwen3-Embedding is causal and stays so; what reads both ways says so where transformers looks for it.
    fields["bidirectional"] = getattr(source.config, "is_causal", True) is False
    return dataclasses.replace(source, fields=fields)


def _decoder_config(folder: Path) -> PreTrainedConfig:
    # Local code only: a public folder may name a remote file, which is never run.
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type in OWN_MODEL_TYPES:
        raise ValueError(
            f"path must hold a causal language model, got one of ours, {config.model_type}. "
            "Load it with AutoModel.from_pretrained."
        )
    with torch.device("meta"):
        has_layers = isinstance(getattr(AutoModel.from_config(config), "layers", None), nn.ModuleList)
    if not has_layers:  # BERT and other encoders; GPT-2
        raise ValueError(
            f"path must hold a decoder with its blocks in layers, got {config.model_type}. Choose a model of "
            "the Llama, Qwen, Mistral or Gemma families."
        )
    return config


def check_public_layout(shapes: dict[str, torch.Size], config: PreTrainedConfig) -> None:
    """Compare a checkpoint of the LLM2Vec4CXR layout with the decoder and the head it must hold.

    Args:
        shapes: Of every tensor: the decoder under ``model.`` (or no prefix, as in the first releases) and the
            head under ``latent_attn.``.
        config: Of the decoder.

    Raises:
        ValueError: If a tensor is missing, unknown or of the wrong shape.
    """
    num_latents = next(iter(shapes.get(HEAD_PREFIX + "latents", ())), 0)
    prefix = "model." if any(name.startswith("model.") for name in shapes) else ""
    with torch.device("meta"):
        decoder = AutoModel.from_config(config)
        head = LatentAttentionPooling(config.hidden_size, num_latents, 1, "v0")
    expected = {prefix + name: tensor.shape for name, tensor in decoder.state_dict().items()}
    expected |= {HEAD_PREFIX + name: tensor.shape for name, tensor in head.state_dict().items()}
    wrong = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unknown": sorted(shapes.keys() - expected.keys()),
        "of another shape": sorted(
            name for name in expected.keys() & shapes.keys() if shapes[name] != expected[name]
        ),
    }
    found = [f"{len(names)} {kind}, such as {names[0]}" for kind, names in wrong.items() if names]
    if found:
        raise ValueError(
            f"path must hold the {len(expected)} tensors of decoder and latent attention, got "
            f"{'; '.join(found)}. Download the folder again, or point to another model."
        )


def merged_fields(source: LLMSource, fields: dict[str, Any]) -> dict[str, Any]:
    """Combine what the source says about the encoder with what the caller says, who wins.

    A pooling without parameters, named by the caller, leaves a stored head behind: that is how the authors
    of LLM2Vec4CXR evaluated it. Where nobody names a pooling, the head starts as the mean.

    Raises:
        ValueError: If the caller asks for another latent attention than the stored one.
    """
    combined = source.fields | fields
    if "pooling" not in combined:
        combined = {"latent_variant": "prenorm"} | combined
    if source.files and combined["pooling"] == "latent_attention":
        for name in ("latent_variant", "num_latents"):
            if combined[name] != source.fields[name]:
                raise ValueError(
                    f"{name} must be that of the stored head, {source.fields[name]!r}, got "
                    f"{combined[name]!r}. Leave it out, or choose another pooling to load without the head."
                )
    return combined


def read_decoder(
    source: LLMSource, num_hidden_layers: int | None, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """Read the decoder, without its language-model head, and the weights of a stored pooling head.

    Args:
        source: Where they lie.
        num_hidden_layers: Keep only the lowest layers. None keeps all.
        dtype: Precision of the decoder. None is what the source says.

    Returns:
        The decoder and the state dict of the head, empty where there is none.

    Raises:
        ValueError: If weights are missing or unknown, an adapter does not fit, or ``num_hidden_layers`` is
            not in 1..depth.
    """
    head: dict[str, torch.Tensor] = {}
    if source.files:
        tensors = read_tensors(source.files)
        stored = source.config.dtype or tensors[HEAD_PREFIX + "latents"].dtype  # as transformers chooses it
        decoder = AutoModel.from_config(source.config, dtype=stored if dtype is None else dtype)
        for name in [name for name in tensors if name.startswith(HEAD_PREFIX)]:
            head[name.removeprefix(HEAD_PREFIX)] = tensors.pop(name)
        decoder.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    else:
        decoder = _read_plain(source, dtype)
    for folder in source.adapters:
        merge_adapter(decoder, folder)
    if num_hidden_layers is not None:
        _cut(decoder, num_hidden_layers)
    return decoder, head


def _read_plain(source: LLMSource, dtype: torch.dtype | None) -> PreTrainedModel:
    gguf = {"gguf_file": source.gguf_file} if source.gguf_file else {"use_safetensors": True}
    decoder: PreTrainedModel
    decoder, report = AutoModel.from_pretrained(
        source.folder,
        dtype="auto" if dtype is None else dtype,
        output_loading_info=True,
        trust_remote_code=False,
        **gguf,
    )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(DROPPED_PREFIXES))
    unknown = sorted(name for name in report["unexpected_keys"] if not name.startswith(DROPPED_PREFIXES))
    for names, kind in ((missing, "missing"), (unknown, "unknown")):
        if names:
            raise ValueError(
                f"path must hold the weights of the decoder and no other, got {len(names)} {kind}, "
                f"such as {names[0]}. Point to a complete causal language model."
            )
    return decoder


def _cut(decoder: PreTrainedModel, num_hidden_layers: int) -> None:
    """Drop the upper layers."""
    layers = decoder.layers
    assert isinstance(layers, nn.ModuleList)  # of every causal family of transformers
    if not 1 <= num_hidden_layers <= len(layers):
        raise ValueError(
            f"num_hidden_layers must be between 1 and {len(layers)}, got "
            f"{num_hidden_layers}. Leave it out to keep every layer."
        )
    decoder.layers = layers[:num_hidden_layers]
    decoder.config.num_hidden_layers = num_hidden_layers
    if getattr(decoder.config, "layer_types", None):  # one entry per layer: Qwen3, Gemma 3
        decoder.config.layer_types = decoder.config.layer_types[:num_hidden_layers]


def read_tokenizer(source: LLMSource) -> PreTrainedTokenizerBase:
    """Read the tokenizer of the source."""
    gguf = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        source.tokenizer_folder, trust_remote_code=False, **gguf
    )
    return tokenizer
