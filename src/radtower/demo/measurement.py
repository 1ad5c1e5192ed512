"""What the demo measures of a dual tower on the test split, with the rows behind the numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radtower.data.manifest import Manifest
from radtower.data.volume_cache import open_volume_cache
from radtower.evaluation.decisions.finding_scores import FindingScores
from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs, embed_pairs
from radtower.evaluation.pairs.pair_retrieval import PAIRING, measure_pairs
from radtower.evaluation.pairs.scan_source import picture_source
from radtower.evaluation.reports.figures import write_pictures
from radtower.evaluation.reports.pictures.retrieval_pictures import PictureOptions, pair_pictures
from radtower.evaluation.results import Provenance, Results, write_results
from radtower.evaluation.rows import QueryRows, write_rows
from radtower.evaluation.zero_shot.finding_results import zero_shot_results
from radtower.evaluation.zero_shot.scored_items import ScoredItems
from radtower.labeling.findings import FindingsSet
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.modeling_zero_shot import pair_scores

TRUTH = "truth of the phantom"


@dataclass(frozen=True)
class Measured:
    """Results of a tower, where they lie, and the vectors that they are of."""

    results: Results
    path: Path
    pairs: EmbeddedPairs
    truth: np.ndarray


def measure_tower(
    folder: Path,
    studies: Manifest,
    cache_folder: Path,
    findings: FindingsSet,
    num_resamples: int,
    on_progress: Callable[..., None],
    *,
    created: datetime,
) -> Measured:
    """Measure zero-shot classification and retrieval, and write results and rows beside the model.

    Args:
        folder: Of the model.
        studies: To measure on.
        cache_folder: Preprocessed scans.
        findings: What is classified.
        num_resamples: Of the bootstrap of zero-shot classification.
        on_progress: Called with the number of studies done.
        created: When this is, for the results.
    """
    model = load_tower(folder)
    cache = open_volume_cache(cache_folder, model.processor.image_processor)
    pairs = embed_pairs(model, studies.frame, cache.__getitem__, on_progress=on_progress)
    scores = zero_shot_scores(model, pairs.images, findings)
    truth = Manifest(pairs.studies).truth(findings)
    settings: dict[str, Any] = {
        "dataset": "phantom scans, test split",
        "class_set": f"{len(findings.keys)} phantom findings",
    }
    zero_shot = Provenance(**settings, label_source=TRUTH, protocol="prompt ensemble")
    retrieval = Provenance(**settings, label_source=PAIRING)
    patients = list(pairs.studies["patient_id"])
    metrics = zero_shot_results(scores, truth, patients, findings.keys, zero_shot, num_resamples)
    retrieved = measure_pairs(pairs, retrieval, protocols=["exact-row"])
    results = Results(
        model_id=folder.name,
        model_revision=None,
        created=created,
        phantom=True,
        metrics=(*metrics, *retrieved.metrics),
    )
    path = folder / "results.json"
    write_results(results, path)
    sample = FindingScores(scores=scores, labels=truth, patient_ids=patients, keys=findings.keys)
    items = ScoredItems(sample, pairs.studies["study_id"].to_numpy(), len(truth), "volume")
    write_rows(items.rows(zero_shot), results, path)
    write_rows(QueryRows(retrieved.query_rows), results, path)
    return Measured(results, path, pairs, truth)


def draw_measured(measured: Measured, studies: Manifest, findings: FindingsSet) -> None:
    """Draw gallery and map of a measured tower; they lie beside its results."""
    load_image = picture_source(load_tower(measured.path.parent), studies)
    labels = {key: measured.truth[:, column] for column, key in enumerate(findings.keys)}
    options = PictureOptions(label_source=TRUTH, is_phantom=True)
    write_pictures(
        pair_pictures(measured.pairs, load_image, labels, options), measured.results, measured.path
    )


def load_tower(folder: Path) -> MedCLIPModel:
    """Load a dual tower of the demo."""
    return MedCLIPModel.from_pretrained(folder, dtype=torch.float32).eval()


def zero_shot_scores(model: MedCLIPModel, images: torch.Tensor, findings: FindingsSet) -> np.ndarray:
    """Return zero-shot probabilities ``(N, F)`` of image vectors."""
    directions = model.pair_directions([finding.prompts[0] for finding in findings.findings])
    with torch.no_grad():
        return pair_scores(images, directions, model.zero_shot_scale()).numpy().astype(np.float64)
