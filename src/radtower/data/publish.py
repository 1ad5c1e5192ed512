"""Push a folder to the Hub: private unless asked, and all of it in one commit."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

RepoType = Literal["dataset", "model", "space"]
# Of httpx or httpx2, whichever this release of huggingface_hub is built on; no OSError.
_TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


@dataclass(frozen=True)
class Published:
    """Where a folder went."""

    url: str
    commit: str
    is_private: bool
    num_deleted: int


def require_token() -> None:
    """Refuse to start without a token.

    Raises:
        PermissionError: If there is none.
    """
    if get_token() is None:
        raise PermissionError(
            "a token of the Hub must be set, got none. Run `hf auth login`, or set HF_TOKEN."
        )


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: RepoType,
    message: str,
    is_public: bool = False,
    owned_files: Iterable[str] = (),
) -> Published:
    """Make the repository if it is not there, and bring the folder into it with one commit.

    One commit, not ``upload_folder``, which splits large folders: nobody must ever see the card of one
    version beside the data of another. If nothing changed there is no commit.

    Args:
        folder: All its files go up.
        repo_id: ``owner/name``.
        repo_type: Kind of repository.
        message: Of the commit.
        is_public: Make a new repository public. A private one that exists stays private.
        owned_files: Paths that only we write: those that are in the repository and not in the folder are
            deleted in the same commit. Their older versions stay in its history.

    Raises:
        PermissionError: If there is no token, or the Hub does not accept it for this repository.
        ValueError: If the repository is public already and ``is_public`` was not said.
        ConnectionError: If the Hub cannot be reached.
        OSError: If it answers with another error.
    """
    require_token()
    try:
        return _push(Path(folder), repo_id, repo_type, message, is_public, frozenset(owned_files))
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status not in (401, 403):
            raise
        raise PermissionError(
            f"the token must be allowed to write to {repo_id}, got HTTP {status} from the Hub. Make a token "
            "with write access to it, and run `hf auth login`."
        ) from None
    except _TRANSPORT_ERROR as error:
        raise ConnectionError(
            f"the Hub must be within reach, got {type(error).__name__} from {HfApi().endpoint}. Check the "
            "network, or HF_ENDPOINT."
        ) from error


def _push(
    folder: Path,
    repo_id: str,
    repo_type: RepoType,
    message: str,
    is_public: bool,
    owned_files: frozenset[str],
) -> Published:
    api = HfApi(library_name="radtower")
    sdk = "gradio" if repo_type == "space" else None
    url = api.create_repo(repo_id, repo_type=repo_type, private=not is_public, exist_ok=True, space_sdk=sdk)
    is_private = bool(api.repo_info(repo_id, repo_type=repo_type).private)
    if not is_private and not is_public:
        raise ValueError(
            f"the repository must be private unless public is asked for, got {repo_id}, which is public. Say "
            "that it may be, or choose another."
        )
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    additions = [CommitOperationAdd(str(p.relative_to(folder).as_posix()), p) for p in paths]
    here = {addition.path_in_repo for addition in additions}
    there = set(api.list_repo_files(repo_id, repo_type=repo_type))
    deletions = [CommitOperationDelete(name) for name in sorted((owned_files & there) - here)]
    commit = api.create_commit(repo_id, [*additions, *deletions], commit_message=message, repo_type=repo_type)
    return Published(str(url), commit.oid, is_private, len(deletions))
