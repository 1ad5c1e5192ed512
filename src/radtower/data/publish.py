"""Push a folder to the Hub: private unless asked, in one commit on top of what it was compared with."""

import random
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, get_token
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from radtower.data.folder_change import Change, LocalFile, Version, change_to, files_of
from radtower.data.hub_requests import WAITS_S, bounded_silence, in_our_words, persist, status_of
from radtower.data.privacy import count_identifiers

RepoType = Literal["dataset", "model", "space"]
MAIN = "main"
_PAGE_PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}
_REF_NAME = re.compile(r"(?!.*(?:\.\.|\.lock$|\.$))[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)*", re.ASCII)
_OVERTAKEN = frozenset({409, 412})  # somebody else committed, or is about to
_TAKEN = 409
_MOST_NAMED = 5
# A commit, branch or tag may have these: versions are dates, and a message may say where to read on.
_ALLOWED_KINDS = frozenset({"date", "web address", "age over 89"})


@dataclass(frozen=True)
class PushTarget:
    """Where in a repository a folder goes.

    Args:
        branch: Made from main if it is not there. None is main.
        tag: Name for the commit. One that is there at another commit is never moved.
        is_pull_request: Open a pull request against main, and leave main as it is.

    Raises:
        ValueError: If a name cannot be one of git, may identify a patient, or a pull request has a branch or
            a tag.
    """

    branch: str | None = None
    tag: str | None = None
    is_pull_request: bool = False

    def __post_init__(self) -> None:
        for kind, name in (("branch", self.branch), ("tag", self.tag)):
            if name is not None and (not _REF_NAME.fullmatch(name) or name.startswith("refs/")):
                raise ValueError(
                    f"{kind} must be a name of letters, digits, '.', '_', '-' and '/', got {name!r}. Choose "
                    "another."
                )
            check_words(kind, name or "")
        if self.tag is not None and self.tag in (MAIN, self.branch):
            raise ValueError(f"tag must not be the name of a branch, got {self.tag!r}. Choose another.")
        if self.is_pull_request and (self.branch or self.tag):
            raise ValueError(
                "a pull request must have no branch and no tag: it is against main, and not yet in it, got "
                f"branch {self.branch!r} and tag {self.tag!r}. Leave them out."
            )


@dataclass(frozen=True)
class Published:
    """Where a folder went.

    Args:
        url: Of the repository.
        commit: That has the folder; of a pull request, its own.
        is_private: Of the repository.
        num_deleted: Files of ours that were there and are no more.
        num_changed: Files that are new or have other contents. 0 and no deleted ones: there was no commit.
        pull_request_url: None where none was opened.
    """

    url: str
    commit: str
    is_private: bool
    num_deleted: int
    num_changed: int
    pull_request_url: str | None = None


def require_token() -> None:
    """Refuse to start without a token.

    Raises:
        PermissionError: If there is none, or one that no header can carry: the client would print it.
    """
    token = get_token()
    if token is None:
        raise PermissionError(
            "a token of the Hub must be set, got none. Run `hf auth login`, or set HF_TOKEN."
        )
    if not re.fullmatch(r"[!-~]+", token):
        raise PermissionError(
            "a token of the Hub must be plain letters and digits, got one with other characters. Copy it "
            "again, and run `hf auth login`, or set HF_TOKEN."
        )


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no ``owner/name``.

    Raises:
        ValueError: If it has no owner, or the Hub takes no such name.
    """
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"repo_id must be OWNER/NAME, got {repo_id!r}. Put your name in front.")


def check_words(what: str, words: str) -> None:
    """Refuse a message or a name that may identify a patient: it is seen by all who see the repository.

    Raises:
        ValueError: If the privacy check finds something other than a date. The words are not repeated.
    """
    found = sorted(set(count_identifiers(words)) - _ALLOWED_KINDS)
    if found:
        raise ValueError(
            f"{what} must hold nothing that may identify a patient, got what looks like a "
            f"{' and a '.join(found)}. Choose other words."
        )


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: RepoType,
    message: str,
    is_public: bool = False,
    owned_files: Iterable[str] = (),
    target: PushTarget = PushTarget(),
) -> Published:
    """Make the repository if it is not there, and bring the folder into it with one commit.

    One commit, not ``upload_folder``, which splits large folders: nobody must ever see the card of one
    version beside the data of another. Only files that differ from those there are sent; if none does there
    is no commit. The commit says what it was compared with, and the Hub refuses it if somebody else was
    faster: then it is made on top of theirs, if that touches none of our files.

    Files that have arrived stay on the Hub's store, so the next run goes on where this one was interrupted.

    Args:
        folder: All its files go up.
        repo_id: ``owner/name``.
        repo_type: Kind of repository.
        message: Of the commit.
        is_public: Make a new repository public. A private one that exists stays private.
        owned_files: Paths that only we write, or patterns with ``*``, which matches within a folder: those
            that are in the repository and not in the folder are deleted in the same commit. Their older
            versions stay in its history.
        target: Branch, tag or pull request. A pull request needs a repository that exists.

    Raises:
        PermissionError: If there is no token, or the Hub does not accept it for this repository.
        ValueError: If the id has no owner, the message may identify a patient, the repository is public and
            ``is_public`` was not said, or its ``.gitignore`` leaves out files of the folder.
        FileNotFoundError: If the folder has no files, or the repository of a pull request does not exist.
        FileExistsError: If somebody else changed the same files meanwhile, or the tag is at another commit.
        ConnectionError: If the Hub cannot be reached, is silent, or is busy for longer than a push waits.
        OSError: If it answers with another error.
    """
    require_token()
    check_repo_id(repo_id)
    check_words("message", message)
    files = files_of(Path(folder))
    with in_our_words(repo_id), bounded_silence():
        return _Push(repo_id, repo_type, message, files, target).run(is_public, tuple(owned_files))


class _Push:
    """One push: what goes where, and the client that brings it there."""

    def __init__(
        self,
        repo_id: str,
        repo_type: RepoType,
        message: str,
        files: dict[str, LocalFile],
        target: PushTarget,
    ) -> None:
        self.api = HfApi(library_name="radtower")
        self.repo_id, self.repo_type, self.message, self.target = repo_id, repo_type, message, target
        self.files = files
        self.branch = target.branch or MAIN

    def run(self, is_public: bool, owned: tuple[str, ...]) -> Published:
        is_private = self._open(is_public)
        version = self._read()
        change = change_to(version, self.files, owned)
        self._refuse_other_tag(None if change else version.commit)  # before anything is sent
        commit, pull_request_url = self._commit(version, change) if change else (version.commit, None)
        self._tag(commit)
        return Published(
            url=f"{self.api.endpoint}/{_PAGE_PREFIX[self.repo_type]}{self.repo_id}",
            commit=commit,
            is_private=is_private,
            num_deleted=len(change.deletions),
            num_changed=len(change.additions),
            pull_request_url=pull_request_url,
        )

    def _open(self, is_public: bool) -> bool:
        """Make repository and branch where they are not there; returns whether it is private."""
        if not self.target.is_pull_request:
            sdk = "gradio" if self.repo_type == "space" else None
            persist(
                lambda: self.api.create_repo(
                    self.repo_id,
                    repo_type=self.repo_type,
                    private=not is_public,
                    exist_ok=True,
                    space_sdk=sdk,
                )
            )
        is_private = bool(persist(lambda: self.api.repo_info(self.repo_id, repo_type=self.repo_type)).private)
        if not is_private and not is_public:
            raise ValueError(
                f"the repository must be private unless public is asked for, got {self.repo_id}, which is "
                "public. Say that it may be, or choose another."
            )
        if self._commit_of(self.branch) is None:
            persist(
                lambda: self.api.create_branch(
                    self.repo_id, branch=self.branch, repo_type=self.repo_type, exist_ok=True
                )
            )
        return is_private

    def _commit_of(self, revision: str) -> str | None:
        """Commit of a branch or a tag; None if there is none of that name."""
        try:
            info = persist(
                lambda: self.api.repo_info(self.repo_id, repo_type=self.repo_type, revision=revision)
            )
        except RevisionNotFoundError:
            return None
        return str(info.sha)

    def _read(self) -> Version:
        """The branch as it is now: all of one commit, whatever happens meanwhile."""
        commit = self._commit_of(self.branch)
        if commit is None:
            raise FileNotFoundError(
                f"the branch must stay while a push goes on, got {self.branch!r}, which is gone. Push again."
            )
        entries = persist(
            lambda: list(
                self.api.list_repo_tree(
                    self.repo_id, repo_type=self.repo_type, revision=commit, recursive=True
                )
            )
        )
        return Version(commit, {entry.path: entry for entry in entries if isinstance(entry, RepoFile)})

    def _commit(self, version: Version, change: Change) -> tuple[str, str | None]:
        """Upload and commit, on top of what somebody else did meanwhile if it is none of our files.

        Returns the commit, and the address of a pull request.
        """
        additions = {
            name: CommitOperationAdd(name, self.files[name].path) for name in sorted(change.additions)
        }
        self._upload(list(additions.values()))
        for wait_s in (*WAITS_S, *WAITS_S):
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                *(additions[name] for name in sorted(change.additions)),
                *(CommitOperationDelete(name) for name in sorted(change.deletions)),
            ]
            try:
                made = self._send(version, operations)
            except HfHubHTTPError as error:
                if status_of(error) not in _OVERTAKEN or self.target.is_pull_request:
                    raise
            else:
                return str(made.oid), made.pr_url if self.target.is_pull_request else None
            # Two that push in step would stay in step.
            time.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 -- no secret
            latest = self._read()
            change = change.left_in(latest, self.files)
            self._refuse_collisions(change.collisions(version, latest), latest)
            if not change:  # our own commit, whose answer was lost; or somebody brought the same files
                return latest.commit, None
            version = latest
        raise ConnectionError(
            f"the branch must stand still for a moment, got another commit to {self.repo_id} at each of "
            f"{2 * len(WAITS_S)} tries. Push again: what has arrived is not sent twice."
        )

    def _upload(self, additions: list[CommitOperationAdd]) -> None:
        """Store the large files; the client asks again by itself, and sends none that is stored."""
        self.api.preupload_lfs_files(
            self.repo_id,
            additions,
            repo_type=self.repo_type,
            revision=self.branch,
            create_pr=self.target.is_pull_request,
            free_memory=False,
        )
        # Set by the call above. The client would leave these files out of the commit, with a line in its log.
        ignored = [one.path_in_repo for one in additions if getattr(one, "_should_ignore", False)]
        if ignored:
            named = ", ".join(ignored[:_MOST_NAMED])
            raise ValueError(
                f"the repository must take every file of a push, got {len(ignored)} that its .gitignore "
                f"leaves out: {named}. Change .gitignore in {self.repo_id}."
            )

    def _send(
        self, version: Version, operations: list[CommitOperationAdd | CommitOperationDelete]
    ) -> CommitInfo:
        is_pull_request = self.target.is_pull_request
        # Twice on the same parent is refused; but each pull request is another one.
        return persist(
            lambda: self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=self.message,
                repo_type=self.repo_type,
                revision=self.branch,
                parent_commit=version.commit,
                create_pr=is_pull_request,
            ),
            is_repeatable=not is_pull_request,
        )

    def _refuse_collisions(self, names: list[str], latest: Version) -> None:
        if names:
            more = "" if len(names) <= _MOST_NAMED else f" and {len(names) - _MOST_NAMED} more"
            raise FileExistsError(
                f"files to push must stay as they are in {self.repo_id} while a push goes on, got another "
                f"commit, {latest.commit[:8]}, that changes {', '.join(names[:_MOST_NAMED])}{more}. Look at "
                "it, and push again to replace it."
            )

    def _refuse_other_tag(self, commit: str | None) -> None:
        """Refuse a tag that is at another commit than this one; None is one that is still to be made."""
        tag = self.target.tag
        at = None if tag is None else self._commit_of(tag)
        if at is not None and at != commit:
            raise FileExistsError(
                f"a tag must be new or at the commit that has the folder, got {tag!r}, which is at {at[:8]} "
                f"of {self.repo_id}. Choose another name: what a tag names does not change."
            )

    def _tag(self, commit: str) -> None:
        tag = self.target.tag
        if tag is None or self._commit_of(tag) == commit:
            return
        try:
            persist(
                lambda: self.api.create_tag(
                    self.repo_id, tag=tag, revision=commit, repo_type=self.repo_type, exist_ok=False
                )
            )
        except HfHubHTTPError as error:
            if status_of(error) != _TAKEN:
                raise
            self._refuse_other_tag(commit)  # else the answer to our own request was lost
