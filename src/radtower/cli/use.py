"""``radtower zero-shot`` and ``radtower embed``: use a model on scans and reports."""

from pathlib import Path
from typing import Annotated

import typer

from radtower.cli.extras import register_models
from radtower.cli.output import (
    NOT_FOR_DIAGNOSIS,
    print_failures,
    print_json,
    print_table,
    progress_bar,
)

embed_app = typer.Typer(no_args_is_help=True, help="Turn scans or reports into vectors.")
Output = Annotated[Path, typer.Option("--output", "-o", help="What to write.")]


def zero_shot(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a dual tower.")],
    scan: Annotated[
        Path, typer.Argument(help="DICOM folder, NIfTI, NRRD or MetaImage; PNG, JPEG or TIFF for a 2D tower.")
    ],
    findings: Annotated[str, typer.Option(help="Findings set, or a YAML file.")] = "ct_rate_18",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score the findings of one scan."""
    register_models()
    from radtower.evaluation.pairs.embedded_pairs import load_dual_tower
    from radtower.labeling.findings import load_findings

    tower = load_dual_tower(model)
    chosen = load_findings(findings).findings
    scores = tower.zero_shot(scan, [finding.prompts[0] for finding in chosen])[0].tolist()
    ranked = sorted(zip(scores, chosen, strict=True), key=lambda pair: -pair[0])
    if json:
        by_key = {finding.key: score for score, finding in zip(scores, chosen, strict=True)}
        print_json({"scan": str(scan), "model": model, "scores": by_key, "note": NOT_FOR_DIAGNOSIS})
        return
    rows = [(finding.name, f"{score:.3f}") for score, finding in ranked]
    print_table(f"Zero-shot scores, uncalibrated: {scan}", ("finding", "score"), rows)
    print(NOT_FOR_DIAGNOSIS)


@embed_app.command()
def images(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of an image tower or a dual tower.")],
    scans: Annotated[
        list[Path],
        typer.Argument(
            help="DICOM folders, NIfTI, NRRD or MetaImage files; PNG, JPEG or TIFF for a 2D tower."
        ),
    ],
    output: Output,
) -> None:
    """Embed scans; those that cannot be read are listed at the end."""
    register_models()
    from radtower.evaluation.features import embed_scans, write_features

    with progress_bar("Embedding scans", len(scans)) as on_progress:
        features, failures = embed_scans(model, scans, on_progress)
    write_features(features, output)
    print(f"{len(features.ids)} of {len(scans)} scans, {features.vectors.shape[1]} numbers each, in {output}")
    print_failures(failures)
    if failures:
        raise typer.Exit(1)


@embed_app.command()
def texts(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a text encoder or a dual tower.")],
    reports: Annotated[Path, typer.Argument(help="CSV or parquet with an id and a text column.")],
    output: Output,
    id_column: Annotated[str, typer.Option(help="Column of report ids.")] = "study_id",
    text_column: Annotated[str, typer.Option(help="Column of report texts.")] = "report",
    limit: Annotated[int | None, typer.Option(help="Rows to read from the top.")] = None,
) -> None:
    """Embed reports; empty ones are listed at the end."""
    register_models()
    from radtower.data.report_table import read_reports
    from radtower.evaluation.features import embed_reports, write_features

    pairs = read_reports(reports, id_column, text_column, limit)
    features, failures = embed_reports(model, pairs, show_progress=True)
    write_features(features, output)
    print(
        f"{len(features.ids)} of {len(pairs)} reports, {features.vectors.shape[1]} numbers each, in {output}"
    )
    print_failures(failures)
    if failures:
        raise typer.Exit(1)


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command(name="zero-shot")(zero_shot)
    app.add_typer(embed_app, name="embed")
