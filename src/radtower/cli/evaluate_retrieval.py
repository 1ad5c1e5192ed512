"""``radtower evaluate retrieval``: does a scan find its report, a report its scan, a scan its like?"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.evaluation_options import (
    AsJson,
    BatchSize,
    Cache,
    DatasetName,
    IsPhantom,
    LabelId,
    Labels,
    LabelSource,
    Resamples,
    check_names,
)
from radtower.cli.extras import register_models, require
from radtower.cli.output import check_results_path, print_failures, progress_bar

if TYPE_CHECKING:
    from radtower.data.manifest import Manifest
    from radtower.evaluation.results import Results
    from radtower.evaluation.retrieval.images.image_labels import ImageLabels
    from radtower.evaluation.retrieval.query_outcomes import Measures


def retrieval(  # noqa: PLR0913 -- one argument per flag
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a dual tower, or of an image tower.")],
    manifest: Annotated[Path, typer.Argument(help="Table of studies with their reports.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="results.json; outcomes per query are written beside it.")
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="pairs: scan to report and back; images: scan to scan; can be repeated. Without: pairs, or "
            "images for an image tower."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Where to measure.")] = "test",
    gallery_split: Annotated[
        list[str] | None,
        typer.Option(help="Where images are searched; can be repeated. Without: the split that asks."),
    ] = None,
    cache: Cache = None,
    k: Annotated[
        list[int] | None,
        typer.Option(help="Items looked at; can be repeated. Without: 1, 5, 10, 50, and 100 for pairs."),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="Pairs: exact-row: nothing else is right; study: another scan of it is, too; study-level: a "
            "study asks once and takes one place; report: any whose report reads the same. Images: "
            "self-excluded, study-excluded, patient-excluded, or legacy-ct-clip, the published script beside "
            "its repairs. Can be repeated. Without: all that differ here, legacy-ct-clip aside."
        ),
    ] = None,
    relevance: Annotated[
        str,
        typer.Option(
            help="What makes images alike: findings; concepts: column `concepts`, such as CUIs, separated "
            "by semicolons; irma: column `irma_code`."
        ),
    ] = "findings",
    findings: Annotated[str, typer.Option(help="Findings set, or a YAML file.")] = "ct_rate_18",
    labels: Labels = None,
    label_id: LabelId = None,
    label_source: LabelSource = None,
    ignore_concept: Annotated[
        list[str] | None,
        typer.Option(help="Concept that does not count, such as a modality; can be repeated."),
    ] = None,
    read_outs: Annotated[
        bool,
        typer.Option(
            "--read-outs",
            help="Pairs: do the reports found say the same as the true ones? By --labels, or the columns of "
            "the manifest; beside the most common and a random report.",
        ),
    ] = False,
    text_metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Of RadEval, for --read-outs: bleu, rouge, radgraph, f1chexbert, green and others; can be "
            "repeated. Needs the extra radeval."
        ),
    ] = None,
    dataset: DatasetName = None,
    figures: Annotated[
        bool,
        typer.Option(
            "--figures",
            help="Draw a gallery of what is found and a map of the vectors beside the results, for "
            "`radtower report`; needs the extra plots.",
        ),
    ] = False,
    batch_size: BatchSize = 8,
    phantom: IsPhantom = False,
    resamples: Resamples = 2000,
    json: AsJson = False,
) -> None:
    """Recall@k, median rank and MRR of pairs; mAP@k, nDCG@k and more of images; beside chance."""
    register_models()
    from radtower.cli.read_outs import planned_read_outs
    from radtower.cli.retrieval_figures import draw_figures, findings_reader
    from radtower.cli.retrieval_tables import print_retrieval
    from radtower.data.manifest import read_manifest
    from radtower.evaluation.pairs.embedded_pairs import load_dual_tower
    from radtower.evaluation.pairs.image_tower import load_image_tower
    from radtower.evaluation.pairs.pair_retrieval import retrieval_results
    from radtower.evaluation.pairs.retrieval_evaluation import (
        RetrievalData,
        check_image_data,
        embed_for_retrieval,
        measure_retrieval_tasks,
    )
    from radtower.evaluation.pairs.retrieval_plan import plan_retrieval, volumes_needed
    from radtower.evaluation.pairs.scan_source import picture_source, scan_source
    from radtower.evaluation.retrieval.ranks import RetrievalOptions

    _check_output(output, needs_plots=figures)
    check_names(dataset, label_source)
    image_tower = load_image_tower(model)
    plan = plan_retrieval(task or (), protocol or (), k or (), relevance, has_reports=image_tower is None)
    everything = read_manifest(manifest, needs_reports="pairs" in plan.tasks)
    needed = volumes_needed(everything, split, gallery_split or ())
    data = RetrievalData(
        manifest=needed,
        split=split,
        galleries=tuple(gallery_split or ()),
        name=dataset or f"{manifest.name}, {split} split",
        read_labels=_label_reader(
            relevance, findings, labels, label_id, label_source, tuple(ignore_concept or ())
        ),
    )
    plan.check_data(split, data.galleries, int((needed.frame["split"] == split).sum()))
    check_image_data(plan, data)
    asked = planned_read_outs(
        read_outs,
        everything,
        split,
        plan.tasks,
        text_metric or (),
        (findings, labels, label_id, label_source),
    )
    tower = image_tower or load_dual_tower(model)
    load_scan = scan_source(tower, needed, cache)
    with progress_bar("Embedding scans", len(needed)) as on_progress:
        vectors = embed_for_retrieval(tower, plan, data, load_scan, batch_size, on_progress)
    print_failures(vectors.failures)
    options = RetrievalOptions(num_resamples=resamples)
    retrieved = measure_retrieval_tasks(plan, data, vectors, options)
    measures = asked.added_to(retrieved, vectors.pairs, data.name, plan.ks, options)
    results = retrieval_results(tower, measures, is_phantom=phantom)
    _write(results, measures, output)
    if figures:
        findings_of = findings_reader(findings, labels, label_id, label_source)
        draw_figures(data, vectors, findings_of, picture_source(tower, needed, cache), results, output)
    print_retrieval(results, output, as_json=json)
    _fail_if_left_out(len(vectors.failures), len(needed))


def _write(results: "Results", measures: "Measures", output: Path) -> None:
    from radtower.evaluation.results import write_results
    from radtower.evaluation.rows import QueryRows, write_rows

    write_results(results, output)
    write_rows(QueryRows(measures.query_rows), results, output)


def _fail_if_left_out(num_failures: int, num_volumes: int) -> None:
    if num_failures:
        typer.echo(f"{num_failures} of {num_volumes} volumes are left out.", err=True)
        raise typer.Exit(1)


def _check_output(output: Path, *, needs_plots: bool) -> None:
    check_results_path(output)
    if needs_plots:
        require("plots")


def _label_reader(
    relevance: str,
    findings: str,
    table: Path | None,
    label_id: str | None,
    label_source: str | None,
    ignored: tuple[str, ...],
) -> "Callable[[Manifest], ImageLabels]":
    """How to read the labels of volumes; flags that do not fit the kind of relevance are refused."""
    from radtower.data.finding_truth import read_truth
    from radtower.evaluation.retrieval.images.image_labels import (
        column_labels,
        finding_labels,
    )
    from radtower.labeling.findings import load_findings

    if ignored and relevance != "concepts":
        raise ValueError(f"--ignore-concept must come with --relevance concepts, got {relevance}.")
    if (table or label_id) and relevance != "findings":
        raise ValueError(
            f"--labels and --label-id must come with --relevance findings, got {relevance}. It is a column "
            "of the manifest."
        )
    chosen = load_findings(findings)

    def read(volumes: "Manifest") -> "ImageLabels":
        if relevance == "findings":
            truth = read_truth(volumes, chosen, table, label_id)
            return finding_labels(replace(truth, source=label_source or truth.source), chosen.name)
        return column_labels(volumes.frame, relevance, label_source, ignored)

    return read
