"""What all commands that push have in common: where it goes, and what is said when it is there."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from radtower.data.publish import Published, PushTarget

Public = Annotated[bool, typer.Option("--public", help="Visible to everyone; without: private.")]
Branch = Annotated[
    str | None, typer.Option("--branch", help="Of the repository, made from main if it is not there.")
]
Tag = Annotated[str | None, typer.Option("--tag", help="Of the commit; one that is taken is not moved.")]
PullRequest = Annotated[bool, typer.Option("--pr", help="Open a pull request, and leave main as it is.")]


def push_target(branch: str | None, tag: str | None, is_pull_request: bool) -> "PushTarget":
    """Where in the repository it goes.

    Raises:
        ValueError: If a name cannot be one of git, or a pull request has a branch or a tag.
    """
    from radtower.data.publish import PushTarget

    return PushTarget(branch=branch, tag=tag, is_pull_request=is_pull_request)


def published_fields(published: "Published | None") -> dict[str, Any]:
    """What ``--json`` says of a push; all null where nothing was pushed."""
    names = ("url", "commit", "is_private", "num_changed", "num_deleted", "pull_request_url")
    return {name: getattr(published, name, None) for name in names}


def print_published(published: "Published | None") -> None:
    """Say where it went, and what of it was new."""
    if published is None:
        print("Nothing was pushed")
        return
    where = f"{published.url} ({'private' if published.is_private else 'public'})"
    if not published.num_changed and not published.num_deleted:
        print(f"Pushed to {where} before, nothing has changed since: commit {published.commit}")
        return
    files = f"files: {published.num_changed} changed, {published.num_deleted} deleted"
    print(f"Pushed to {where}, commit {published.commit}: {files}")
    if published.pull_request_url is not None:
        print(f"Pull request: {published.pull_request_url}")
