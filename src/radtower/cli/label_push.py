"""``radtower label --push-to``: the labels go to the Hub when they are there, or wait for it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from radtower.cli.extras import require
from radtower.cli.output import print_failures

PushTo = Annotated[
    str | None,
    typer.Option(metavar="OWNER/NAME", help="Push the labels as push-labels does: private, without text."),
]


def check_push(repo_id: str | None, without: Mapping[str, object]) -> None:
    """Refuse before the labeling what could not be pushed after it."""
    if repo_id is None:
        return
    require("plots")
    from radtower.data.publish import check_repo_id

    check_repo_id(repo_id)
    given = ["--" + name.replace("_", "-") for name, value in without.items() if value]
    if given:
        raise ValueError(f"--push-to must not come with {', '.join(given)}. Use push-labels afterwards.")


def push_when_labeled(repo_id: str, labels: Path, table: tuple[str, str, str]) -> None:
    """Push the labels of a table: its volumes and splits where it is a file, unique reports otherwise.

    Raises:
        typer.Exit: If they are refused, or wait; the labels stay where they are.
    """
    from radtower.hub_cards.labels.label_dataset import FILES, write_label_dataset
    from radtower.hub_cards.labels.label_release import ReleaseOptions, prepare_release
    from radtower.hub_cards.pushes.push_queue import PushOrder, PushQueue, queue_folder
    from radtower.hub_cards.pushes.push_worker import send_queue

    reports, id_column, text_column = table
    is_file = Path(reports).is_file()
    options = ReleaseOptions(
        repo_id=repo_id,
        reports=Path(reports) if is_file else None,
        id_column=id_column if is_file else None,
        text_column=text_column,
    )
    queue = PushQueue(queue_folder(labels))
    order = PushOrder(
        repo_id=repo_id, repo_type="dataset", message="Labels by radtower label", owned_files=FILES
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = write_label_dataset(prepare_release(labels, options), Path(scratch) / "labels")
            queue.add(folder, order)
    except (OSError, ValueError) as error:
        print_failures({"the push": f"{error} The labels are saved; radtower push-labels has options."})
        raise typer.Exit(1) from None
    failures = send_queue(queue, lambda note: typer.echo(note, err=True))
    if failures:
        again = f"Send it with radtower push --pending {labels}."
        print_failures({f"push {name}": f"{error} It waits. {again}" for name, error in failures.items()})
        raise typer.Exit(1)
