"""Pictures of a card: copied into ``card_images/`` of an export, and shown in a section.

Pictures of scans lie beside ``results.json``; they are taken along where the results say that the scans are
synthetic, and nowhere else. Curves and intervals come from ``radtower report``: they show no patient.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

IMAGE_FOLDER = "card_images"
REPORT_PICTURES = "pictures.json"  # what radtower report says of the pictures that it drew from numbers
_CAPTIONS = "captions.json"
_PNG = b"\x89PNG\r\n\x1a\n"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.png")


@dataclass(frozen=True)
class CardPicture:
    """A PNG with what a card says of it; ``alt`` is for who cannot see it.

    Raises:
        ValueError: If the name is more than a file name, or the content no PNG.
    """

    file: str
    title: str
    caption: str
    alt: str
    png: bytes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.file):
            raise ValueError(
                f"a picture must be named as in roc-1.png, got {self.file!r}. Draw the pictures again."
            )
        if not self.png.startswith(_PNG):
            raise ValueError(f"{self.file} must be a PNG, got something else. Draw the pictures again.")


def phantom_pictures(results: Path | None, measured: dict[str, Any] | None) -> list[CardPicture]:
    """Read the pictures of scans beside results of phantoms; of patients there are none to be read.

    Raises:
        ValueError: If the pictures are of other results.
    """
    if results is None or measured is None or not measured["phantom"]:
        return []
    source = results.with_suffix(".figures")
    if not (source / _CAPTIONS).is_file():
        return []
    captions = json.loads((source / _CAPTIONS).read_text(encoding="utf-8"))
    if _time(captions["created"]) != _time(measured["created"]):
        raise ValueError(
            f"{source.name} must be of the results beside it, got {captions['created']} where they say "
            f"{measured['created']}. Draw the pictures again, or delete the folder."
        )
    return [_read(source, figure) for figure in captions["figures"]]


def report_pictures(report: Path | None, measured: dict[str, Any] | None) -> list[CardPicture]:
    """Read the curves and intervals that ``radtower report`` drew of these results.

    Args:
        report: Folder of the report. None gives none.
        measured: Content of ``results.json``.

    Raises:
        FileNotFoundError: If it is no folder of a report.
        ValueError: If there are no results, or the report is of others.
    """
    if report is None:
        return []
    if not (report / REPORT_PICTURES).is_file():
        raise FileNotFoundError(
            f"the folder of a report must hold {REPORT_PICTURES}, got {report}. Run radtower report first."
        )
    if measured is None:
        raise ValueError(f"{report} must come with its results, got none. Name them with --results.")
    drawn = json.loads((report / REPORT_PICTURES).read_text(encoding="utf-8"))
    if not any(
        run["model_id"] == measured["model_id"] and _time(run["created"]) == _time(measured["created"])
        for run in drawn["runs"]
    ):
        raise ValueError(
            f"the report must be of the results of the card, {measured['model_id']} of "
            f"{measured['created']}, got {[run['model_id'] for run in drawn['runs']]} in {report}. Write it "
            "again with radtower report."
        )
    return [_read(report, figure) for figure in drawn["figures"]]


def write_pictures(folder: Path, pictures: Sequence[CardPicture]) -> str:
    """Write pictures into an export and return the Markdown that shows them; empty without any.

    Raises:
        ValueError: If two have one file name.
    """
    names = [picture.file for picture in pictures]
    if len(set(names)) < len(names):
        raise ValueError(f"pictures must have names of their own, got {sorted(names)}. Rename one.")
    if not pictures:
        return ""
    (folder / IMAGE_FOLDER).mkdir()
    for picture in pictures:
        (folder / IMAGE_FOLDER / picture.file).write_bytes(picture.png)
    return "\n\n".join(
        f"![{_plain(picture.alt)}]({IMAGE_FOLDER}/{picture.file})\n\n{picture.title}. {picture.caption}"
        for picture in pictures
    )


def is_image_folder(path: Path) -> bool:
    """Whether it is the folder that is written here, and holds nothing else."""
    return path.name == IMAGE_FOLDER and all(file.suffix == ".png" for file in path.iterdir())


def _read(folder: Path, figure: dict[str, str]) -> CardPicture:
    name = Path(figure["file"]).name  # never out of the folder
    return CardPicture(name, figure["title"], figure["caption"], figure["alt"], (folder / name).read_bytes())


def _time(text: str) -> datetime:
    """Two ways of writing one moment are equal."""
    return datetime.fromisoformat(text)


def _plain(alt: str) -> str:
    """A bracket would end the text of the picture, and so would an empty line."""
    return re.sub(r"([\[\]\\])", r"\\\1", " ".join(alt.split()))
