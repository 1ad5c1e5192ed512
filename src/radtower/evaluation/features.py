"""Embeddings as files: ``features.safetensors`` with the vectors, ``manifest.json`` with what they are.

Axes: N items, E embedding.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

from radtower.data.preprocessing.provenance import processor_hash
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.report_text import normalize_report

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
        is_normalized: Whether every vector has length 1.
    """

    kind: Literal["image", "text"]
    model_id: str
    model_revision: str | None
    processor_hash: str | None
    is_normalized: bool


@dataclass(frozen=True)
class Features:
    """Vectors ``(N, E)`` float32 with their ids and source."""

    vectors: torch.Tensor
    ids: list[str]
    source: FeatureSource


def embed_scans(
    model_folder: str | Path,
    scans: Sequence[str | Path],
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Features, dict[str, str]]:
    """Embed scans, or 2D images, one at a time with an image tower or a dual tower.

    Args:
        model_folder: Model folder or Hub id.
        scans: Paths; each path is the id of its vector.
        on_progress: Called with the number of scans done.

    Returns:
        The features of the scans that could be read, and the reason for each of the others.

    Raises:
        TypeError: If the model has no image tower.
        ValueError: If no scan could be read.
    """
    model = _load(model_folder, (CT3DVisionModel, MedCLIPModel), "image")
    image_processor = AutoImageProcessor.from_pretrained(model_folder)
    # That of transformers would clip images of 16 bits; the dual tower's own spreads them first.
    is_2d = isinstance(model, MedCLIPModel) and not model.processor.reads_volumes
    prepare = model.processor if is_2d else image_processor
    vectors, ids, failures = [], [], {}
    for done, scan in enumerate(scans, start=1):
        try:
            pixel_values = prepare(scan)["pixel_values"]
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            failures[str(scan)] = str(error)
        else:
            vectors.append(_embed_pixels(model, pixel_values))
            ids.append(str(scan))
        if on_progress is not None:
            on_progress(done)
    if not vectors:
        raise ValueError(
            f"at least one scan must be readable, got {len(failures)} failures. The first says: "
            f"{next(iter(failures.values()), 'there were no scans')}"
        )
    source = _source(model, model_folder, "image", processor_hash(image_processor))
    return Features(torch.cat(vectors), ids, source), failures


def embed_reports(
    model_folder: str | Path,
    reports: Iterable[tuple[str, str]],
    show_progress: bool = False,
) -> tuple[Features, dict[str, str]]:
    """Embed reports with a text encoder or a dual tower; pairs of id and text in, unit vectors out.

    Reports are normalized first, as for training.

    Returns:
        The features of the reports that hold text, and the reason for each of the others.

    Raises:
        TypeError: If the model has no text tower.
        ValueError: If no report holds text.
    """
    model = _load(model_folder, (LLMBiEncoder, MedCLIPModel), "text")
    cleaned = [(report_id, normalize_report(text)) for report_id, text in reports]
    failures = {report_id: "the report is empty" for report_id, text in cleaned if not text}
    ids = [report_id for report_id, text in cleaned if text]
    texts = [text for _, text in cleaned if text]
    if not texts:
        raise ValueError(
            f"at least one report must hold text, got {len(failures)} empty ones. Name the column of texts."
        )
    if isinstance(model, MedCLIPModel):
        vectors = model.encode_text(texts, show_progress=show_progress)
    else:
        vectors = model.encode(texts, show_progress=show_progress, normalize=True)
    return Features(vectors, ids, _source(model, model_folder, "text", None)), failures


def write_features(features: Features, folder: str | Path) -> Path:
    """Write vectors and manifest; the manifest comes last, so that half a write cannot be read."""
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


def require_same_space(left: Features, right: Features) -> None:
    """Refuse to compare vectors of different models.

    Raises:
        ValueError: If model, revision, normalization or, between scans, the image processor differ.
    """
    names = ["model_id", "model_revision", "is_normalized"]
    if left.source.kind == right.source.kind:
        names.append("processor_hash")
    for name in names:
        pair = getattr(left.source, name), getattr(right.source, name)
        if pair[0] != pair[1]:
            raise ValueError(
                f"features must share their {name}, got {pair[0]!r} and {pair[1]!r}. "
                "Embed both with one model and its processor."
            )


def _load(folder: str | Path, kinds: tuple[type, ...], kind: str) -> Any:
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    if not isinstance(model, kinds):
        raise TypeError(
            f"the model must have an {kind} tower, got {type(model).__name__}. "
            f"Use one of {[k.__name__ for k in kinds]}."
        )
    return model


def _embed_pixels(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    if isinstance(model, MedCLIPModel):
        return model.encode_image(pixel_values)
    with torch.no_grad():
        return F.normalize(model(pixel_values).pooler_output, dim=-1)


def _source(
    model: Any, folder: str | Path, kind: Literal["image", "text"], hash_of_processor: str | None
) -> FeatureSource:
    return FeatureSource(
        kind=kind,
        model_id=Path(folder).name if Path(folder).exists() else str(folder),
        model_revision=getattr(model.config, "_commit_hash", None),
        processor_hash=hash_of_processor,
        is_normalized=True,
    )
