"""Find and read the files of a language model: a local folder or a Hub id, safetensors only."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_state_dict_from_file, snapshot_download

# What a model, an adapter, a tokenizer or a sentence-transformers folder is made of; no code, no pickle.
DOWNLOADED = [
    "*.json",
    "*.jinja",
    "model*.safetensors",
    "adapter_model*.safetensors",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "0_Transformer/*.json",
    "0_Transformer/*.txt",
    "0_Transformer/model*.safetensors",
]
HEADER_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header


def local_folder(path: str | os.PathLike[str]) -> Path:
    """Give the folder of a model; a Hub id is downloaded first, without its code.

    Raises:
        FileNotFoundError: If ``path`` reads like a local folder and is none. Asking the Hub instead would
            answer a typing mistake with a network error.
    """
    text = os.fspath(path)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    parts = text.split("/")
    is_local = (
        isinstance(path, os.PathLike)
        or text.startswith((".", "/", "~"))
        or "\\" in text
        or len(parts) > 2  # a Hub id is owner/name
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )
    if is_local:
        raise FileNotFoundError(
            f"path must be an existing folder, a .gguf file or a Hub id, got {text!r}. "
            "Correct the path; a Hub id is written owner/name."
        )
    return Path(snapshot_download(text, allow_patterns=DOWNLOADED))


def read_json(path: Path) -> Any:
    """Content of a JSON file, or None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def weight_files(folder: Path, name: str = "model") -> list[Path]:
    """List the safetensors files of a folder: ``{name}.safetensors``, or the shards of its index.

    Returns:
        Existing files; empty where there are no weights at all.

    Raises:
        FileNotFoundError: If a shard of the index is missing.
        ValueError: If the only weights are pickled, or the index names other files than shards beside it.
    """
    if (folder / f"{name}.safetensors").is_file():
        return [folder / f"{name}.safetensors"]
    index = read_json(folder / f"{name}.safetensors.index.json")
    if index is not None:
        shards = [folder / shard for shard in shard_names(index, folder)]
        for shard in shards:
            if not shard.is_file():
                raise FileNotFoundError(
                    f"path must hold every shard of the weights, got {folder} without {shard.name}. "
                    "Download the rest."
                )
        return shards
    for pickled in sorted([*folder.glob(f"{name}*.bin"), *folder.glob(f"pytorch_{name}*.bin")]):
        raise ValueError(
            f"path must hold safetensors weights, got {pickled}, a pickle, which is never loaded. Convert it "
            "once, with weights = torch.load(path, weights_only=True) and safetensors.torch.save_file("
            f"{{name: w.clone().contiguous() for name, w in weights.items()}}, '{name}.safetensors')."
        )
    return []


def shard_names(index: dict[str, Any], folder: Path) -> list[str]:
    """List the files that an index of weights names, sorted.

    Raises:
        ValueError: If one is no safetensors file in the folder itself.
    """
    names = sorted(set(index["weight_map"].values()))
    for name in names:
        if "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(
                f"the index of weights must name safetensors files beside it, got {name!r} in {folder}. "
                "Download the model again, from somebody you trust."
            )
    return names


def path_inside(folder: Path, name: str) -> Path:
    """Join a path that a file of a folder names.

    Raises:
        ValueError: If it leads out of the folder.
    """
    if "\\" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(
            f"every path in a model folder must stay in it, got {name!r} in {folder}. Download the model "
            "again, from somebody you trust."
        )
    return folder / name


def tensor_shapes(files: list[Path]) -> dict[str, torch.Size]:
    """Shape of every tensor, from the headers alone."""
    shapes: dict[str, torch.Size] = {}
    for path in files:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")))
        header.pop("__metadata__", None)
        shapes |= {name: torch.Size(entry["shape"]) for name, entry in header.items()}
    return shapes


def read_tensors(files: list[Path]) -> dict[str, torch.Tensor]:
    """Every tensor of the files, on the CPU and in the precision they were saved in."""
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        tensors |= load_state_dict_from_file(path)
    return tensors
