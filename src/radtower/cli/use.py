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

TABLES = (".csv", ".parquet")
embed_app = typer.Typer(no_args_is_help=True, help="Turn scans or reports into vectors.")
Output = Annotated[Path, typer.Option("--output", "-o", help="What to write.")]


def zero_shot(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a dual tower.")],
    scan: Annotated[
        Path, typer.Argument(help="DICOM folder, NIfTI, NRRD or MetaImage; PNG, JPEG or TIFF for a 2D tower.")
    ],
    findings: Annotated[
        str | None, typer.Option(help="Findings set, or a YAML file. Without: ct_rate_18.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Score as `radtower evaluate zero-shot` does by this protocol. Without: an ensemble."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score the findings of one scan."""
    register_models()
    from radtower.evaluation.pairs.embedded_pairs import load_dual_tower
    from radtower.evaluation.zero_shot.protocol import load_protocol
    from radtower.evaluation.zero_shot.scan_read_outs import zero_shot_scores
    from radtower.labeling.findings import load_findings

    if protocol is not None and findings is not None:
        raise ValueError(
            f"--findings must not come with --protocol, which names them, got {findings!r}. Leave it out."
        )
    asked = None if protocol is None else load_protocol(protocol)
    chosen = (load_findings(findings or "ct_rate_18") if asked is None else asked.labels).findings
    tower = load_dual_tower(model)
    if asked is None:
        scores = tower.zero_shot(scan, [finding.prompts[0] for finding in chosen])[0].tolist()
    else:
        vectors = tower.encode_image(scan, normalize=tower.is_cosine).cpu()
        scores = zero_shot_scores(tower, vectors, asked)[0].tolist()
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
            help="DICOM folders, NIfTI, NRRD or MetaImage files; PNG, JPEG or TIFF for a 2D tower. "
            "Or one manifest, CSV or parquet: the ids are then its volume ids."
        ),
    ],
    output: Output,
    split: Annotated[str | None, typer.Option(help="Split of the manifest. Without: all.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of `radtower preprocess` for the manifest. Without: the scan files."),
    ] = None,
) -> None:
    """Embed scans; those that cannot be read are listed at the end.

    Their ids are paths below the folder that holds them all.
    """
    register_models()
    from radtower.data.manifest import read_manifest
    from radtower.evaluation.embedding import embed_manifest, embed_scans
    from radtower.evaluation.features import write_features

    is_manifest = len(scans) == 1 and scans[0].suffix in TABLES
    if not is_manifest and (split is not None or cache is not None):
        raise ValueError(
            f"--split and --cache must come with a manifest, got {len(scans)} scans. Leave them out, or name "
            "one CSV or parquet."
        )
    if is_manifest:
        manifest = read_manifest(scans[0], needs_reports=False)
        manifest = manifest if split is None else manifest.split(split)  # type: ignore[arg-type]
        num_scans = len(manifest)
        with progress_bar("Embedding scans", num_scans) as on_progress:
            features, failures = embed_manifest(model, manifest, cache, on_progress)
    else:
        num_scans = len(scans)
        with progress_bar("Embedding scans", num_scans) as on_progress:
            features, failures = embed_scans(model, scans, on_progress)
    write_features(features, output)
    print(f"{len(features.ids)} of {num_scans} scans, {features.vectors.shape[1]} numbers each, in {output}")
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
    from radtower.evaluation.embedding import embed_reports
    from radtower.evaluation.features import write_features

    pairs = read_reports(reports, id_column, text_column, limit)
    features, failures = embed_reports(model, pairs, show_progress=True, is_stored=True)
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
