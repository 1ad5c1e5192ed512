"""Options that the evaluations of scans share: labels, names of what is measured, resamples."""

from pathlib import Path
from typing import Annotated

import typer

Cache = Annotated[
    Path | None,
    typer.Option(help="Folder of `radtower preprocess`, for a 3D tower. Without: the scan files."),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="labels.parquet, or a table with a column per finding, such as CT-RATE's. Without: the "
        "columns of the manifest."
    ),
]
LabelId = Annotated[str | None, typer.Option(help="Column of volume ids in that table.")]
LabelSource = Annotated[str | None, typer.Option(help="Who gave the labels.")]
DatasetName = Annotated[
    str | None, typer.Option(help="Name of the data in the results. Without: file and split.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Scans at a time.")]
IsPhantom = Annotated[bool, typer.Option("--phantom", help="Say that the scans are synthetic.")]
Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the patients.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def check_names(dataset: str | None, label_source: str | None) -> None:
    """Refuse names that are given and say nothing.

    Raises:
        ValueError: If one is blank.
    """
    named = {"--dataset": ("the data", dataset), "--label-source": ("who gave the labels", label_source)}
    for flag, (what, words) in named.items():
        if words is not None and not words.strip():
            raise ValueError(f"{flag} must name {what}, got an empty text. Leave it out for the default.")
