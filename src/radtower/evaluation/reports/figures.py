"""Pictures that no ``results.json`` can give: they lie beside it in ``results.figures/``, with captions.

A gallery needs scans, a map needs vectors: whoever has them draws, and the report shows what lies there.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from radtower.evaluation.results import CAPTIONS, Results, figures_folder, foreign_files

_PNG = b"\x89PNG\r\n\x1a\n"


class Caption(BaseModel):
    """What a picture shows; ``alt`` says it to who cannot see it. None of it may name a patient."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*\.png$")
    title: str = Field(min_length=1)
    caption: str = Field(min_length=1)
    alt: str = Field(min_length=1)


class _Captions(BaseModel):
    """Content of ``captions.json``, and the run that it is of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_id: str
    created: str
    figures: tuple[Caption, ...]


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption."""

    caption: Caption
    png: bytes


def write_pictures(pictures: Sequence[Picture], results: Results, path: str | Path) -> Path:
    """Write pictures beside the ``results.json`` at ``path``, in place of those of an earlier run.

    Args:
        pictures: In the order of the report.
        results: Whose pictures they are.
        path: The ``results.json``.

    Returns:
        The folder.

    Raises:
        ValueError: If two have one file name, one is no PNG, or the folder holds files that are not ours.
    """
    for picture in pictures:
        _check_png(picture.caption.file, picture.png)
    names = [picture.caption.file for picture in pictures]
    if len(set(names)) < len(names):
        raise ValueError(f"pictures must have names of their own, got {sorted(names)}. Rename one.")
    folder = figures_folder(path)
    foreign = foreign_files(folder)
    if foreign:
        raise ValueError(
            f"{folder.name} must hold pictures only, got {foreign[0]}. Move it: the folder is replaced."
        )
    captions = _Captions(
        model_id=results.model_id,
        created=str(results.created),
        figures=tuple(picture.caption for picture in pictures),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        fresh = Path(name) / folder.name
        fresh.mkdir()
        for picture in pictures:
            (fresh / picture.caption.file).write_bytes(picture.png)
        (fresh / CAPTIONS).write_text(captions.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.move(folder, Path(name) / "old")
        fresh.replace(folder)
    return folder


def read_pictures(results: Results, path: str | Path) -> list[Picture]:
    """Read the pictures beside the ``results.json`` at ``path``, in their order; none without a folder.

    Raises:
        ValueError: If they are of another run, a caption is missing or incomplete, or a file is no PNG.
    """
    folder = figures_folder(path)
    if not folder.is_dir():
        return []
    captions = _read_captions(folder)
    if (captions.model_id, captions.created) != (results.model_id, str(results.created)):
        raise ValueError(
            f"{folder.name} must be of the results beside it, got {captions.model_id!r} of "
            f"{captions.created} where they say {results.model_id!r} of {results.created}. "
            "Draw them again, or delete the folder."
        )
    told = {caption.file for caption in captions.figures}
    there = {file.name for file in folder.glob("*.png")}
    if told != there:
        raise ValueError(
            f"{folder.name}/{CAPTIONS} must have a caption for each picture, got "
            f"{sorted(told ^ there)[0]} in one of them only. Add what is missing."
        )
    pictures = [Picture(caption, (folder / caption.file).read_bytes()) for caption in captions.figures]
    for picture in pictures:
        _check_png(picture.caption.file, picture.png)
    return pictures


def _read_captions(folder: Path) -> _Captions:
    path = folder / CAPTIONS
    if not path.is_file():
        raise ValueError(f"{folder.name} must hold {CAPTIONS}, got none. Write one, or delete the folder.")
    try:
        return _Captions.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder.name}/{CAPTIONS} must name model_id, created and figures with file, title, caption and "
            f"alt, got {type(error).__name__}. Draw the pictures again."
        ) from error


def _check_png(name: str, content: bytes) -> None:
    if not content.startswith(_PNG):
        raise ValueError(f"{name} must be a PNG, got {len(content)} bytes of something else. Convert it.")
