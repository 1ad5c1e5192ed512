"""YAML files by name, where they ship with the package, or by path, where they are the user's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

OWN_PACKAGE = "radtower.labeling"
_MAX_SHOWN = 60  # characters of a value in an error


@dataclass(frozen=True)
class DataFile:
    """What a file says, and who it is.

    ``identity`` is the shipped name or the resolved path. ``folder`` is what paths in it are relative to;
    None for a shipped file, which names shipped files only.
    """

    identity: str
    content: dict[str, Any]
    folder: Path | None


def shipped_names(subfolder: str) -> frozenset[str]:
    """Return the names of the shipped files in a folder below ``labeling``."""
    return frozenset(_shipped(subfolder))


def _shipped(subfolder: str, package: str = OWN_PACKAGE) -> dict[str, Traversable]:
    folder = resources.files(package).joinpath(subfolder)
    return {item.name.removesuffix(".yaml"): item for item in folder.iterdir() if item.name.endswith(".yaml")}


def open_data_file(
    what: str,
    subfolder: str,
    name_or_path: str | Path,
    opened_by: Sequence[DataFile] = (),
    package: str = OWN_PACKAGE,
) -> DataFile:
    """Read a shipped file by name, or a user's own file by path.

    Args:
        what: What the file holds, for errors, such as "findings set".
        subfolder: Where the shipped ones are, in ``package``.
        name_or_path: Name, or path; in another file, a path relative to that file.
        opened_by: The files that led here, outermost first.
        package: Whose files are meant.

    Raises:
        ValueError: If there is no such file, it leads back to itself, or it is no YAML.
        TypeError: If it is not a table of keys.
    """
    shipped = _shipped(subfolder, package)
    folder = opened_by[-1].folder if opened_by else Path()
    if str(name_or_path) in shipped:
        identity, text = str(name_or_path), shipped[str(name_or_path)].read_text(encoding="utf-8")
        own_folder = None
    elif folder is not None and (folder / name_or_path).is_file():
        path = (folder / name_or_path).resolve()
        identity, text, own_folder = str(path), path.read_text(encoding="utf-8"), path.parent
    else:
        raise ValueError(
            f"name_or_path must be a shipped {what} or a YAML file, got {str(name_or_path)!r}. "
            f"Shipped: {', '.join(sorted(shipped))}."
        )
    chain = [*(file.identity for file in opened_by), identity]
    if identity in chain[:-1]:
        raise ValueError(
            f"a {what} must not be built on itself, got {' -> '.join(Path(link).stem for link in chain)}. "
            "Write out the keys of one of them."
        )
    content = _parsed(text, what, Path(identity).name)
    if not isinstance(content, dict):
        raise TypeError(
            f"a {what} must be a table of keys, got {type(content).__name__} in {Path(identity).name}. "
            "Copy the layout of a shipped one."
        )
    return DataFile(identity, content, own_folder)


@contextmanager
def problems_in(opened: DataFile, what: str) -> Iterator[None]:
    """Turn what pydantic finds wrong in a file into one line that names the file.

    Raises:
        ValueError: With the first problem, and how many more there are.
    """
    try:
        yield
    except ValidationError as error:
        name, first = Path(opened.identity).name, error.errors(include_url=False)[0]
        more = f" There are {error.error_count() - 1} more such problems." if error.error_count() > 1 else ""
        if first["type"] == "value_error":  # of our own checks, which say it all
            message = f"{first['ctx']['error']} Correct {name}."
        else:
            shown = "nothing" if first["type"] == "missing" else repr(first["input"])[:_MAX_SHOWN]
            message = (
                f"{'.'.join(map(str, first['loc']))} must fit its field, got {shown} in {name}: "
                f"{first['msg']}. Copy the layout of a shipped {what}."
            )
        raise ValueError(message + more) from None


def _parsed(text: str, what: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" at line {mark.line + 1}"
        problem = getattr(error, "problem", None) or type(error).__name__
        raise ValueError(
            f"a {what} must be YAML, got {name} with an error{place}: {problem}. Close every bracket and "
            "quote, and indent alike."
        ) from None
