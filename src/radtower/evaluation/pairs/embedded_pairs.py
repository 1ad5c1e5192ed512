"""Scans and reports of studies -> paired vectors of a dual tower; what cannot be read is left out and named.

Axes: N volumes, P projected embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from transformers import AutoModel

from radtower.evaluation.pairs.image_tower import ImageEncoder
from radtower.evaluation.retrieval.ranks import Similarity
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.safe_loading import load_model
from radtower.processing.report_text import normalize_report

NO_REPORT = "the report is empty"


@dataclass(frozen=True)
class EmbeddedVolumes:
    """Row i of the vectors is volume i of the table.

    Args:
        images: ``(N, P)`` float32 on the CPU; unit vectors, unless the similarity is ``dot`` or others were
            asked for.
        studies: N rows of the manifest.
        similarity: How the model compares vectors.
        failures: Reason by volume id, of those that are left out.
    """

    images: torch.Tensor
    studies: pd.DataFrame
    similarity: Similarity
    failures: dict[str, str]


@dataclass(frozen=True)
class EmbeddedPairs:
    """Row i of vectors and table is one volume with its report.

    Args:
        images: ``(N, P)`` float32 on the CPU; unit vectors, unless the similarity is ``dot``.
        reports: ``(N, P)``, likewise.
        studies: N rows of the manifest.
        similarity: How the model compares the two.
        failures: Reason by volume id, of those that are left out.
    """

    images: torch.Tensor
    reports: torch.Tensor
    studies: pd.DataFrame
    similarity: Similarity
    failures: dict[str, str]


def load_dual_tower(source: str | Path) -> MedCLIPModel:
    """Load a dual tower in float32, in evaluation mode.

    Raises:
        TypeError: If the folder or Hub id holds another model.
        ValueError: If weights are missing: a partly random tower embeds, too, and nobody notices.
    """
    # Not MedCLIPModel itself: it would build its missing half with random weights around a single tower.
    loaded: Any = load_model(AutoModel, source, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    if not isinstance(model, MedCLIPModel):
        raise TypeError(
            f"model must be a dual tower, got {type(model).__name__} in {source}. Align it first."
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"a dual tower must find all its weights, got {source} without {len(missing)}, such as "
            f"{missing[0]}. Point to the folder that its training saved at its end."
        )
    return model.eval()


def model_identity(model: ImageEncoder) -> tuple[str, str | None]:
    """Return the name of a model as results have it, without a machine's folders, and its revision."""
    name = model.name_or_path or type(model).__name__
    name = Path(name).resolve().name if Path(name).exists() else name
    return name, getattr(model.config, "_commit_hash", None)


def embed_volumes(
    model: ImageEncoder,
    studies: pd.DataFrame,
    load_scan: Callable[[str], torch.Tensor],
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
    *,
    normalize: bool | None = None,
) -> EmbeddedVolumes:
    """Embed every volume, as the model compares them; the reports are not looked at.

    Args:
        model: In evaluation mode.
        studies: Rows of a manifest, with ``volume_id``.
        load_scan: Volume id -> ``pixel_values`` ``(C, Z, Y, X)`` or ``(C, Y, X)``; whatever it raises becomes
            the reason why the volume is left out.
        batch_size: Scans at a time.
        on_progress: Called with the number of volumes done.
        normalize: Whether to make unit vectors; None as the similarity of the model asks. A finding head
            reads vectors that are not normalized.

    Raises:
        ValueError: If no volume could be read, or ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}. Use 8.")
    failures: dict[str, str] = {}
    waiting: list[torch.Tensor] = []
    images: list[torch.Tensor] = []
    kept: list[int] = []
    is_cosine = model.config.similarity == "cosine"
    should_normalize = is_cosine if normalize is None else normalize
    for row, volume_id in enumerate(studies["volume_id"]):
        scan = _loaded(load_scan, volume_id)
        if isinstance(scan, str):
            failures[volume_id] = scan
        else:
            waiting.append(scan)
            kept.append(row)
        if len(waiting) == batch_size or (waiting and row == len(studies) - 1):
            images.append(model.encode_image(torch.stack(waiting), normalize=should_normalize).cpu())
            waiting.clear()
        if on_progress is not None:
            on_progress(row + 1)
    if not kept:
        raise _nothing_left(failures, len(studies))
    return EmbeddedVolumes(
        torch.cat(images),
        studies.iloc[kept].reset_index(drop=True),
        "cosine" if is_cosine else "dot",
        failures,
    )


def embed_pairs(
    model: MedCLIPModel,
    studies: pd.DataFrame,
    load_scan: Callable[[str], torch.Tensor],
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
    text_batch_size: int | Literal["auto"] = "auto",
) -> EmbeddedPairs:
    """Embed every volume and its report, as the model compares them; see :func:`embed_volumes`.

    Args:
        model: In evaluation mode.
        studies: Rows of a manifest, with ``volume_id`` and ``report``.
        load_scan: Volume id -> ``pixel_values``.
        batch_size: Scans at a time.
        on_progress: Called with the number of volumes done.
        text_batch_size: Reports at a time. ``auto`` batches them by their length, and reads them one by one
            where the vector of a report depends on its batch (``prompt_padding: legacy_middle``).

    Raises:
        ValueError: If nothing is left, or ``batch_size`` is below 1.
    """
    texts = dict(zip(studies["volume_id"], map(normalize_report, studies["report"]), strict=True))

    def load_if_reported(volume_id: str) -> torch.Tensor:
        if not texts[volume_id]:
            raise ValueError(NO_REPORT)
        return load_scan(volume_id)

    volumes = embed_volumes(model, studies, load_if_reported, batch_size, on_progress)
    return add_reports(model, volumes, text_batch_size)


def add_reports(
    model: MedCLIPModel, volumes: EmbeddedVolumes, text_batch_size: int | Literal["auto"] = "auto"
) -> EmbeddedPairs:
    """Embed the reports of volumes that are embedded; those without a report are left out and named.

    Args:
        model: In evaluation mode.
        volumes: With ``report`` among the columns of their studies.
        text_batch_size: See :func:`embed_pairs`.

    Raises:
        ValueError: If no volume has a report.
    """
    texts = [normalize_report(report) for report in volumes.studies["report"]]
    kept = [row for row, text in enumerate(texts) if text]
    ids = volumes.studies["volume_id"]
    failures = volumes.failures | {ids[row]: NO_REPORT for row, text in enumerate(texts) if not text}
    if not kept:
        raise _nothing_left(failures, len(texts) + len(volumes.failures))
    if text_batch_size == "auto" and getattr(model.text_model.config, "depends_on_batch", False):
        text_batch_size = 1
    reports = model.encode_text(
        [texts[row] for row in kept],
        normalize=volumes.similarity == "cosine",
        batch_size=text_batch_size,
    ).cpu()
    studies = volumes.studies.iloc[kept].reset_index(drop=True)
    return EmbeddedPairs(volumes.images[kept], reports, studies, volumes.similarity, failures)


def _nothing_left(failures: dict[str, str], num_studies: int) -> ValueError:
    return ValueError(
        f"at least one study must have a readable scan (and a report, where it is asked for), got "
        f"{len(failures)} of {num_studies} without. The first says: "
        f"{next(iter(failures.values()), 'there were no studies')}"
    )


def _loaded(load_scan: Callable[[str], torch.Tensor], volume_id: str) -> torch.Tensor | str:
    """The scan, or why there is none."""
    try:
        return load_scan(volume_id)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        return str(error)
    except Exception as error:  # damaged files raise what their decoder likes
        return f"{type(error).__name__}: {error}"
