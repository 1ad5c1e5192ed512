"""Pictures beside the results of ``radtower evaluate retrieval``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import numpy as np

    from radtower.data.manifest import Manifest
    from radtower.evaluation.pairs.retrieval_evaluation import RetrievalData, RetrievalVectors
    from radtower.evaluation.results import Results

FindingsOf = Callable[["Manifest"], tuple[dict[str, "np.ndarray"], str]]


def findings_reader(
    name: str, table: Path | None, label_id: str | None, label_source: str | None
) -> FindingsOf:
    """Return a function that gives the findings of volumes and who says so; none without labels."""
    from radtower.data.finding_truth import read_truth
    from radtower.labeling.findings import load_findings

    chosen = load_findings(name)

    def read(volumes: "Manifest") -> tuple[dict[str, "np.ndarray"], str]:
        columns = {name for finding in chosen.findings for name in (finding.key, finding.name)}
        if table is None and not columns & set(volumes.frame):
            return {}, "none"
        truth = read_truth(volumes, chosen, table, label_id)
        labeled = set(truth.labeled_keys)
        found = {key: truth.labels[:, c] for c, key in enumerate(truth.keys) if key in labeled}
        return found, label_source or truth.source

    return read


def draw_figures(
    data: "RetrievalData",
    vectors: "RetrievalVectors",
    findings_of: FindingsOf,
    load_image: "Callable[[str], np.ndarray]",
    results: "Results",
    output: Path,
) -> None:
    """Draw a gallery and a map for each task that was measured, and say where they are."""
    from radtower.data.manifest import Manifest
    from radtower.evaluation.pairs.retrieval_evaluation import image_search
    from radtower.evaluation.reports.figures import write_pictures
    from radtower.evaluation.reports.pictures.retrieval_pictures import (
        PictureOptions,
        image_pictures,
        pair_pictures,
    )

    pictures = []
    if vectors.pairs is not None:
        findings, source = findings_of(Manifest(vectors.pairs.studies))
        options = PictureOptions(label_source=source, is_phantom=results.phantom)
        pictures += pair_pictures(vectors.pairs, load_image, findings, options)
    if vectors.volumes is not None:
        volumes = Manifest(vectors.volumes.studies)
        findings, source = findings_of(volumes)
        options = PictureOptions(label_source=source, is_phantom=results.phantom)
        search = image_search(vectors.volumes, data.split, data.galleries)
        labels = data.read_labels(volumes)
        pictures += image_pictures(vectors.volumes, search, labels, load_image, findings, options)
    # On stderr: with --json, stdout is one document.
    typer.echo(f"Pictures: {write_pictures(pictures, results, output)}", err=True)
