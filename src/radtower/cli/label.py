"""``radtower label``: reports -> labels.parquet."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from radtower.cli.extras import register_models, require
from radtower.cli.output import print_failures, progress_bar


class Backend(StrEnum):
    """Who labels."""

    ENCODER = "encoder"
    ENDPOINT = "endpoint"


def label(  # noqa: PLR0913 -- one argument per flag
    reports: Annotated[Path, typer.Argument(help="CSV or parquet with an id and a text column.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="labels.parquet")],
    model: Annotated[str, typer.Option(help="Folder of a trained labeler, or the endpoint's model name.")],
    backend: Annotated[Backend, typer.Option(help="Who labels.")] = Backend.ENCODER,
    findings: Annotated[str, typer.Option(help="Findings set, or a YAML file.")] = "ct_rate_18",
    base_url: Annotated[str | None, typer.Option(help="Address of the endpoint.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the key.")] = None,
    id_column: Annotated[str, typer.Option(help="Column of report ids.")] = "study_id",
    text_column: Annotated[str, typer.Option(help="Column of report texts.")] = "report",
) -> None:
    """Label reports with a fine-tuned encoder or an OpenAI-compatible endpoint."""
    register_models()
    from radtower.data.report_table import read_reports
    from radtower.labeling.findings import load_findings
    from radtower.labeling.label_table import write_labels
    from radtower.labeling.labeler import LabelerBackend, label_reports

    findings_set = load_findings(findings)
    labeler: LabelerBackend
    if backend is Backend.ENCODER:
        from radtower.labeling.encoder import EncoderLabeler

        encoder = EncoderLabeler(model)
        labeler, findings_set = encoder, findings_set.subset(encoder.keys)
    else:
        require("label")
        from radtower.labeling.endpoint import EndpointLabeler

        if base_url is None:
            raise ValueError("--base-url must be given for an endpoint, got none. Add its address.")
        labeler = EndpointLabeler(base_url, model, findings_set, api_key_env=api_key_env)
    pairs = read_reports(reports, id_column, text_column)
    with progress_bar("Labeling reports", len(pairs)) as on_progress:
        rows = label_reports(pairs, labeler, findings_set, on_progress=on_progress)
    write_labels(rows, output)
    failures = {row.report_id: row.error for row in rows if row.error is not None}
    print(f"{len(rows) - len(failures)} of {len(rows)} unique reports labeled in {output}")
    print_failures(failures)
    if failures:
        raise typer.Exit(1)


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(label)
