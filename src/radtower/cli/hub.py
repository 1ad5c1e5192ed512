"""``radtower export``: a trained model folder -> one that loads anywhere."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")],
    results: Annotated[Path | None, typer.Option(help="results.json for the card.")] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", help="Of the weights, e.g. apache-2.0.")
    ] = None,
) -> None:
    """Write weights, processor, flat remote code and a card."""
    from radtower.hub_cards.export import export_model

    if results is None and (model / "results.json").exists():
        results = model / "results.json"
    print(f"Exported {export_model(model, output, results, license_id)}")


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(export)
