"""``radtower demo``: the whole path on phantoms."""

from pathlib import Path
from typing import Annotated

import typer

from radtower.cli.extras import register_models, require


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything it makes.")] = Path(
        "demo_output"
    ),
    seed: Annotated[int, typer.Option(help="Seed of phantoms, reports and training.")] = 0,
) -> None:
    """Phantom scans and reports -> labels -> towers -> zero-shot and retrieval -> export -> reload."""
    require("demo")
    register_models()
    from radtower.demo.walkthrough import run_demo

    run_demo(output, seed)


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(demo)
