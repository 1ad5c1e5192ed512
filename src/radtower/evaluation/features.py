"""Embeddings as files: ``features.safetensors`` with the vectors, ``manifest.json`` with what they are.

Axes: N items, E embedding.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

VECTORS_FILE = "features.safetensors"
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class FeatureSource:
    """Where vectors come from; two sets can be compared only if this agrees, kind aside.

    Args:
        kind: ``image`` or ``text``.
        model_id: Folder name or Hub id of the model.
        model_revision: Commit on the Hub; None for a local folder.
        processor_hash: Settings of the image processor; None for texts.
        is_normalized: Whether every vector has length 1, so that cosines are compared, and else dot products.
        model_hash: Of weights and configuration (``model_hash``); None in files of earlier releases. Folders
            of one name may hold different models.
        depends_on_batch: Whether the vectors are of an encoder that reads other texts of the batch, too
            (``prompt_padding: legacy_middle``): they must not be stored.
    """

    kind: Literal["image", "text"]
    model_id: str
    model_revision: str | None
    processor_hash: str | None
    is_normalized: bool
    model_hash: str | None = None
    depends_on_batch: bool = False


@dataclass(frozen=True)
class Features:
    """Vectors ``(N, E)`` float32 with their ids and source."""

    vectors: torch.Tensor
    ids: list[str]
    source: FeatureSource


def write_features(features: Features, folder: str | Path) -> Path:
    """Write vectors and manifest; the manifest comes last, so that half a write cannot be read.

    Raises:
        ValueError: If the vectors depend on what else was in their batch.
    """
    refuse_batch_dependent(features.source)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    save_file({"features": features.vectors.contiguous()}, folder / VECTORS_FILE)
    content = {**asdict(features.source), "ids": features.ids, "shape": list(features.vectors.shape)}
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return folder


def read_features(folder: str | Path) -> Features:
    """Read what :func:`write_features` wrote.

    Raises:
        ValueError: If vectors and manifest disagree.
    """
    folder = Path(folder)
    content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    ids, shape = content.pop("ids"), content.pop("shape")
    vectors = load_file(folder / VECTORS_FILE)["features"]
    if list(vectors.shape) != shape or len(ids) != len(vectors):
        raise ValueError(
            f"vectors must match their manifest {shape} with {len(ids)} ids, got {list(vectors.shape)} in "
            f"{folder}. Embed again."
        )
    return Features(vectors, ids, FeatureSource(**content))


def refuse_batch_dependent(source: FeatureSource) -> None:
    """Refuse to store vectors that would be others in another batch.

    Raises:
        ValueError: If they are.
    """
    if source.depends_on_batch:
        raise ValueError(
            f"vectors that are stored must not depend on their batch, got those of {source.model_id} with "
            "prompt_padding 'legacy_middle'. Train with prompt_padding 'contiguous', or compare them where "
            "they are made."
        )


def source_differences(left: FeatureSource, right: FeatureSource) -> dict[str, tuple[object, object]]:
    """Return what keeps vectors of two sources from being compared, by name, with both values.

    The image processor counts between scans only. Where both sides have a hash of the model, it decides: a
    folder that was renamed holds the same weights, and one that was trained again does not.
    """
    names = ["is_normalized"]
    if left.kind == right.kind:
        names.append("processor_hash")
    has_hashes = left.model_hash is not None and right.model_hash is not None
    names += ["model_hash"] if has_hashes else ["model_id", "model_revision"]
    pairs = {name: (getattr(left, name), getattr(right, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def require_same_space(left: Features, right: Features) -> None:
    """Refuse to compare vectors of different models.

    Raises:
        ValueError: If model, revision, normalization or, between scans, the image processor differ.
    """
    for name, pair in source_differences(left.source, right.source).items():
        raise ValueError(
            f"features must share their {name}, got {pair[0]!r} and {pair[1]!r}. "
            "Embed both with one model and its processor."
        )
