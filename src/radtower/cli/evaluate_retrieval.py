"""``radtower evaluate retrieval``: does a scan find its report, and a report its scan?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.extras import register_models
from radtower.cli.output import (
    check_results_path,
    print_failures,
    print_json,
    print_table,
    progress_bar,
    value_with_interval,
)

if TYPE_CHECKING:
    from radtower.evaluation.results import MetricResult, Results


def retrieval(  # noqa: PLR0913 -- one argument per flag
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a dual tower.")],
    manifest: Annotated[Path, typer.Argument(help="Table of studies with their reports.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="results.json.")],
    split: Annotated[str, typer.Option(help="Where to measure.")] = "test",
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of `radtower preprocess`, for a 3D tower. Without: the scan files."),
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option(help="Of recall@k; can be repeated. Without: 1, 5, 10.")
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="exact-row: nothing else is right; study: another scan of it is, too; report: any whose "
            "report reads the same; can be repeated. Without: all that differ here."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name of the data in the results. Without: file and split.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Scans at a time.")] = 8,
    phantom: Annotated[bool, typer.Option("--phantom", help="Say that the scans are synthetic.")] = False,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the patients.")] = 2000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recall@k, median rank and MRR from scan to report and back, beside chance."""
    register_models()
    from radtower.data.manifest import read_manifest
    from radtower.evaluation.pairs.embedded_pairs import embed_pairs, load_dual_tower
    from radtower.evaluation.pairs.pair_retrieval import checked_protocols, retrieval_results
    from radtower.evaluation.pairs.scan_source import scan_source
    from radtower.evaluation.results import write_results
    from radtower.evaluation.retrieval.ranks import RetrievalOptions, check_ks

    check_results_path(output)
    if dataset is not None and not dataset.strip():
        raise ValueError("--dataset must name the data, got an empty text. Leave it out for the file name.")
    studies = read_manifest(manifest).split(split)  # type: ignore[arg-type]
    ks = tuple(dict.fromkeys(k or (1, 5, 10)))
    check_ks(ks, len(studies))
    protocols = checked_protocols(protocol or ())
    tower = load_dual_tower(model)
    load_scan = scan_source(tower, studies, cache)
    with progress_bar("Embedding scans", len(studies)) as on_progress:
        pairs = embed_pairs(tower, studies.frame, load_scan, batch_size, on_progress)
    too_large = [value for value in ks if value >= len(pairs.studies)]
    possible = tuple(value for value in ks if value not in too_large)
    if not possible:
        print_failures(pairs.failures)
        check_ks(ks, len(pairs.studies))
    results = retrieval_results(
        tower,
        pairs,
        dataset or f"{manifest.name}, {split} split",
        protocols,
        possible,
        RetrievalOptions(num_resamples=resamples),
        is_phantom=phantom,
    )
    write_results(results, output)
    if json:
        print_json(results.model_dump(mode="json"))
    else:
        _print(results)
        print(f"Written: {output}")
    print_failures(pairs.failures)
    if pairs.failures:
        typer.echo(f"{len(pairs.failures)} of {len(studies)} studies are left out.", err=True)
        if too_large:
            typer.echo(
                f"recall@{', @'.join(map(str, too_large))} is left out: {len(pairs.studies)} studies remain.",
                err=True,
            )
        raise typer.Exit(1)


def _print(results: "Results") -> None:
    """One table per protocol: both directions, and chance, which they share."""
    first = results.metrics[0]
    print(f"{results.model_id} on {first.dataset}: {first.n} scans and their reports")
    groups: dict[str, dict[str, list[MetricResult]]] = {}
    for item in results.metrics:
        groups.setdefault(item.protocol or "", {}).setdefault(item.metric, []).append(item)
    for protocol, metrics in groups.items():
        rows = [
            (
                name.replace("_at_", "@").replace("_", " "),
                *map(value_with_interval, items),
                "-" if items[0].chance is None else f"{items[0].chance:.2f}",
            )
            for name, items in metrics.items()
        ]
        directions = [str(item.direction).replace("_", " ") for item in next(iter(metrics.values()))]
        print_table(protocol, ("", *directions, "chance"), rows)
    print(
        "95 % intervals over patients. Chance: a random order. What ties with the right one stands before it."
    )
    if results.phantom:
        print("These are phantom results: they show that the software works.")
