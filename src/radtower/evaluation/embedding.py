"""Scans and reports -> features, with the tower of a model; what cannot be read is left out and named.

Axes: N items, E embedding.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import AutoImageProcessor, AutoModel

from radtower.data.manifest import Manifest
from radtower.data.preprocessing.provenance import processor_hash
from radtower.evaluation.features import Features, FeatureSource, refuse_batch_dependent
from radtower.evaluation.model_hash import model_hash
from radtower.evaluation.pairs.scan_source import scan_source, volume_source
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.safe_loading import load_model
from radtower.processing.report_text import normalize_report

LoadScan = Callable[[str], torch.Tensor]


def embed_scans(
    model_folder: str | Path,
    scans: Sequence[str | Path],
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Features, dict[str, str]]:
    """Embed scans, or 2D images, one at a time with an image tower or a dual tower.

    Vectors are as the model compares them: unit vectors, unless a dual tower compares dot products.

    Args:
        model_folder: Model folder or Hub id.
        scans: Paths; see :func:`scan_ids` for the ids of their vectors.
        on_progress: Called with the number of scans done.

    Returns:
        The features of the scans that could be read, and the reason for each of the others, by id. Reasons
        name files without the folders above them: they may be kept, as by ``radtower index build --json``.

    Raises:
        TypeError: If the model has no image tower.
        ValueError: If a scan comes twice, or none could be read.
    """
    paths = scan_ids(scans)
    model, image_processor = _load_image_tower(model_folder)
    # That of transformers would clip images of 16 bits; the dual tower's own spreads them first.
    is_2d = isinstance(model, MedCLIPModel) and not model.processor.reads_volumes
    prepare = model.processor if is_2d else image_processor

    def load(scan: str) -> torch.Tensor:
        pixels: torch.Tensor = prepare(paths[scan])["pixel_values"][0]
        return pixels

    source = _source(model, model_folder, "image", processor_hash(image_processor))
    return _embed(model, paths, load, source, on_progress)


def embed_manifest(
    model_folder: str | Path,
    manifest: Manifest,
    cache: str | Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Features, dict[str, str]]:
    """Embed the scans of a manifest; ids are its volume ids. See :func:`embed_scans`.

    Args:
        model_folder: Model folder or Hub id.
        manifest: Says where the scans are.
        cache: Folder of ``radtower preprocess`` for a 3D tower. None reads the scan files.
        on_progress: Called with the number of scans done.

    Raises:
        TypeError: If the model has no image tower.
        ValueError: If no scan could be read, or the cache is not one of this tower and manifest.
    """
    model, image_processor = _load_image_tower(model_folder)
    if isinstance(model, MedCLIPModel):
        load = scan_source(model, manifest, cache)
    else:
        load = volume_source(image_processor, manifest, cache)
    source = _source(model, model_folder, "image", processor_hash(image_processor))
    paths = dict(zip(manifest.frame["volume_id"], manifest.frame["image_path"], strict=True))
    return _embed(model, paths, load, source, on_progress)


def scan_ids(scans: Sequence[str | Path]) -> dict[str, Path]:
    """Return scans by id: the path below the folder that holds them all, with ``/``, and nothing above it.

    Raises:
        ValueError: If two paths lead to one scan.
    """
    paths = [Path(os.path.abspath(scan)) for scan in scans]  # noqa: PTH100 -- resolve() would follow links
    num_repeats = len(paths) - len({path.resolve() for path in paths})
    if num_repeats:
        raise ValueError(f"scans must differ, got {num_repeats} that come twice. Name each once.")
    if not paths:
        return {}
    folder = os.path.commonpath([path.parent for path in paths])
    return {path.relative_to(folder).as_posix(): path for path in paths}


def embed_reports(
    model_folder: str | Path,
    reports: Iterable[tuple[str, str]],
    show_progress: bool = False,
    *,
    is_stored: bool = False,
) -> tuple[Features, dict[str, str]]:
    """Embed reports with a text encoder or a dual tower; pairs of id and text in, vectors out.

    Reports are normalized first, as for training. Vectors are as in :func:`embed_scans`. Where a vector
    depends on its batch, each report is a batch of its own.

    Args:
        model_folder: Model folder or Hub id.
        reports: Ids and texts.
        show_progress: Whether to draw a bar on stderr.
        is_stored: Refuse a model whose vectors must not be stored, before the work.

    Returns:
        The features of the reports that hold text, and the reason for each of the others.

    Raises:
        TypeError: If the model has no text tower.
        ValueError: If no report holds text, or the vectors shall be stored and depend on their batch.
    """
    model = _load(model_folder, (LLMBiEncoder, MedCLIPModel), "text")
    source = _source(model, model_folder, "text", None)
    if is_stored:
        refuse_batch_dependent(source)
    cleaned = [(report_id, normalize_report(text)) for report_id, text in reports]
    failures = {report_id: "the report is empty" for report_id, text in cleaned if not text}
    ids = [report_id for report_id, text in cleaned if text]
    texts = [text for _, text in cleaned if text]
    if not texts:
        raise ValueError(
            f"at least one report must hold text, got {len(failures)} empty ones. Name the column of texts."
        )
    batch_size: int | Literal["auto"] = 1 if source.depends_on_batch else "auto"
    encode = model.encode_text if isinstance(model, MedCLIPModel) else model.encode
    vectors = encode(
        texts, normalize=source.is_normalized, batch_size=batch_size, show_progress=show_progress
    )
    return Features(vectors, ids, source), failures


def _load_image_tower(folder: str | Path) -> tuple[Any, Any]:
    return (
        _load(folder, (CT3DVisionModel, MedCLIPModel), "image"),
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=False),
    )


def _load(folder: str | Path, kinds: tuple[type, ...], kind: str) -> Any:
    loaded: Any = load_model(AutoModel, folder, dtype=torch.float32, output_loading_info=True)
    model: Any = loaded[0]
    if not isinstance(model, kinds):
        raise TypeError(
            f"the model must have an {kind} tower, got {type(model).__name__}. "
            f"Use one of {[k.__name__ for k in kinds]}."
        )
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise ValueError(
            f"the model must find all its weights, got {folder} without {len(missing)}, such as "
            f"{missing[0]}. Point to the folder that its training saved at its end."
        )
    return loaded[0].eval()


def _embed(
    model: Any,
    paths: Mapping[str, str | Path],
    load: LoadScan,
    source: FeatureSource,
    on_progress: Callable[[int], None] | None,
) -> tuple[Features, dict[str, str]]:
    vectors, kept, failures = [], [], {}
    for done, (scan, path) in enumerate(paths.items(), start=1):
        try:
            pixel_values = load(scan)[None]
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            failures[scan] = _without_folder(str(error), path)
        except Exception as error:  # damaged files raise what their decoder likes
            failures[scan] = f"{type(error).__name__}: {_without_folder(str(error), path)}"
        else:
            vectors.append(_embed_pixels(model, pixel_values, source.is_normalized))
            kept.append(scan)
        if on_progress is not None:
            on_progress(done)
    if not vectors:
        raise ValueError(
            f"at least one scan must be readable, got {len(failures)} failures. The first says: "
            f"{next(iter(failures.values()), 'there were no scans')}"
        )
    return Features(torch.cat(vectors), kept, source), failures


def _without_folder(message: str, path: str | Path) -> str:
    """A message about a scan that tells nothing of the machine; a relative path stays as it is."""
    folder = Path(path).parent
    return message.replace(f"{folder}{os.sep}", "") if folder.is_absolute() else message


def _embed_pixels(model: Any, pixel_values: torch.Tensor, is_normalized: bool) -> torch.Tensor:
    if isinstance(model, MedCLIPModel):
        return model.encode_image(pixel_values, normalize=is_normalized)
    with torch.no_grad():
        return F.normalize(model(pixel_values).pooler_output, dim=-1)


def _source(
    model: Any, folder: str | Path, kind: Literal["image", "text"], hash_of_processor: str | None
) -> FeatureSource:
    is_dual = isinstance(model, MedCLIPModel)
    text_config = getattr(model, "text_model", model).config
    return FeatureSource(
        kind=kind,
        model_id=Path(folder).resolve().name if Path(folder).exists() else str(folder),
        model_revision=getattr(model.config, "_commit_hash", None),
        processor_hash=hash_of_processor,
        is_normalized=not is_dual or model.config.similarity == "cosine",
        model_hash=model_hash(model),
        depends_on_batch=kind == "text" and getattr(text_config, "depends_on_batch", False),
    )
