"""``radtower push``: a model goes to the Hub, with its card, its code and its checksums."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.card_pictures import ExampleScan, ExampleSource, Report, example_pictures
from radtower.cli.extras import register_models
from radtower.cli.output import print_failures, print_json
from radtower.cli.push_options import (
    Branch,
    Public,
    PullRequest,
    Tag,
    print_published,
    published_fields,
    push_target,
)

if TYPE_CHECKING:
    from radtower.hub_cards.model_release import ModelRelease

_KINDS = {
    "model": "Exported for the push",
    "export": "An export as it is",
    "adapter": "An adapter, without its base model",
}


def push(  # noqa: PLR0913 -- one argument per flag
    folder: Annotated[Path, typer.Argument(help="A trained model, an export of one, or an adapter of PEFT.")],
    repo_id: Annotated[str | None, typer.Argument(help="owner/name of the model on the Hub.")] = None,
    public: Public = False,
    branch: Branch = None,
    tag: Tag = None,
    pr: PullRequest = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Model by radtower push",
    license_id: Annotated[
        str | None, typer.Option("--license", help="Of the weights, e.g. apache-2.0.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="results.json for the card; without: the one in the folder.")
    ] = None,
    report: Report = None,
    example_scan: ExampleScan = None,
    example_source: ExampleSource = None,
    allow_phi_findings: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Why findings of the privacy check are harmless; is published."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Export and check, but push nothing.")] = False,
    pending: Annotated[
        bool,
        typer.Option("--pending", help="Send what a training could not; its output in place of a model."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Publish a model: private unless asked, in one commit, and only what changed since the last push."""
    from radtower.data.publish import check_words, require_token
    from radtower.hub_cards.model_release import ModelReleaseOptions, prepare_model, push_release

    if pending:
        on_card = (license_id, results, report, example_scan, example_source, allow_phi_findings)
        _refuse_flags(repo_id, branch, tag, public, pr, dry_run, *on_card)
        _push_pending(folder, json)
        return
    if repo_id is None:
        raise ValueError("repo_id must be OWNER/NAME, got none. Say where the model goes, or --pending.")
    target = push_target(branch, tag, pr)
    check_words("message", message)
    if not dry_run:
        require_token()
    register_models()
    options = ModelReleaseOptions(
        results=results,
        license_id=license_id,
        report=report,
        pictures=example_pictures(folder, example_scan, example_source),
        allowed_reason=allow_phi_findings,
    )
    with prepare_model(folder, repo_id, options) as release:
        published = None
        if not dry_run:
            published = push_release(release, repo_id, message=message, is_public=public, target=target)
        if json:
            about = {"repo_id": repo_id, "kind": release.kind, "files": release.files}
            print_json(about | published_fields(published))
        else:
            _print_release(release)
            print_published(published)


def _refuse_flags(*given: object) -> None:
    if any(given):
        raise ValueError(
            "--pending must come with the output of a run and --json only, got more. What waits knows where "
            "it goes: leave the rest out."
        )


def _push_pending(output: Path, is_json: bool) -> None:
    from radtower.data.publish import require_token
    from radtower.hub_cards.pushes.push_queue import PushQueue, queue_folder
    from radtower.hub_cards.pushes.push_worker import send_queue

    queue = PushQueue(queue_folder(output))
    if not queue.folder.is_dir():
        raise FileNotFoundError(
            f"output must be that of a training that pushes, got {output}, which has no {queue.folder.name}. "
            "Check the path."
        )
    require_token()
    notes: list[str] = []
    failures = send_queue(queue, notes.append)
    waiting = queue.waiting()
    if is_json:
        errors = {name: order.last_error for name, order in waiting.items()}
        print_json({"sent": notes, "waiting": errors})
    else:
        print("\n".join([*notes, f"{len(waiting)} pushes wait"]))
        print_failures({name: str(error) for name, error in failures.items()})
    if waiting:
        raise typer.Exit(1)


def _print_release(release: "ModelRelease") -> None:
    sizes = release.files
    print(f"{_KINDS[release.kind]}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB")
    if release.privacy.num_matches:
        print(f"Allowed, and recorded in privacy.json: {release.privacy.describe()}")


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(push)
