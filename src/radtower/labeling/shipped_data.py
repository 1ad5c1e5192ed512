"""YAML files by name, where they ship with the package, or by path, where they are the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml


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


def _shipped(subfolder: str) -> dict[str, Traversable]:
    folder = resources.files("radtower.labeling").joinpath(subfolder)
    return {item.name.removesuffix(".yaml"): item for item in folder.iterdir() if item.name.endswith(".yaml")}


def open_data_file(
    what: str, subfolder: str, name_or_path: str | Path, opened_by: Sequence[DataFile] = ()
) -> DataFile:
    """Read a shipped file by name, or a user's own file by path.

    Args:
        what: What the file holds, for errors, such as "findings set".
        subfolder: Where the shipped ones are, below ``labeling``.
        name_or_path: Name, or path; in another file, a path relative to that file.
        opened_by: The files that led here, outermost first.

    Raises:
        ValueError: If there is no such file, or it leads back to itself.
        TypeError: If it is not a table of keys.
    """
    shipped = _shipped(subfolder)
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
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise TypeError(
            f"a {what} must be a table of keys, got {type(content).__name__} in {Path(identity).name}. "
            "Copy the layout of a shipped one."
        )
    return DataFile(identity, content, own_folder)
