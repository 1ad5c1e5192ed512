"""Images of MedPix 2.0 with the texts of their cases (Siragusa et al., arXiv 2407.02994) -> a manifest.

One JSON object per image: ``image`` (a file name), ``uid`` of the case, ``split``, and its texts. The images
are in a folder beside the file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from radtower.data.jsonl_table import check_unicode, jsonl_rows
from radtower.data.layouts.downloaded_set import DownloadedSet
from radtower.data.manifest import Manifest, identifier_hash

SPLIT = {"train": "train", "dev": "validation", "validation": "validation", "test": "test"}
TEXTS = ("caption", "findings", "title", "history", "diagnosis")
REQUIRED = ("image", "uid", "split")


def read_medpix(
    cases: str | Path, texts: Sequence[str] = ("caption",), images: str | Path | None = None
) -> DownloadedSet:
    """Read the images that are there, each with its text.

    An image is a study of its own and its case is the patient: captions are written per image, and a case is
    in one split. ``dev`` is our ``validation``. What the texts are: ``caption`` describes the image;
    ``findings`` describe all images of the case, radiographs included; ``title`` and ``diagnosis`` say what
    the case is; ``history`` is what nobody can see in an image.

    Args:
        cases: The JSONL file.
        texts: Of a case, joined by a blank line in this order; empty ones are left out, and so is a text that
            is another one word by word.
        images: Folder of the images. None is ``images`` beside the file.

    Returns:
        The manifest; ``num_not_downloaded`` counts images that are not there, ``num_excluded`` those without
        any text.

    Raises:
        FileNotFoundError: If no image is there.
        ValueError: If a text is unknown, a field is missing or no text, an image comes twice, a split is
            unknown, or no image has a text.
    """
    unknown = [name for name in texts if name not in TEXTS]
    if unknown or not texts:
        raise ValueError(f"texts must be some of {', '.join(TEXTS)}, got {list(texts)}. Name at least one.")
    cases = Path(cases)
    folder = cases.parent / "images" if images is None else Path(images)
    rows = [_row(case, number, texts, folder) for number, case in enumerate(jsonl_rows(cases))]
    frame = pd.DataFrame(rows, columns=["study_id", "patient_id", "image_path", "split", "report"])
    repeated = frame["image_path"].duplicated()
    if repeated.any():
        raise ValueError(
            f"image must be unique, got {int(repeated.sum())} repeats, first in row "
            f"{int(repeated.to_numpy().argmax())} of {cases.name}. Keep one row per image."
        )
    is_there = frame["image_path"].map(lambda path: Path(path).is_file())
    if not is_there.any():
        raise FileNotFoundError(
            f"images must hold the images of {cases.name}, got none of {len(frame)} in {folder}. Unpack them."
        )
    has_text = frame["report"] != ""
    if not (is_there & has_text).any():
        raise ValueError(
            f"texts must be filled for some images, got none with {', '.join(texts)}. Choose another text."
        )
    return DownloadedSet(
        Manifest(frame[is_there & has_text].reset_index(drop=True)),
        num_excluded=int((is_there & ~has_text).sum()),
        num_not_downloaded=int((~is_there).sum()),
        exclusion_lists=(),
        not_downloaded=tuple(Path(path).name for path in frame["image_path"][~is_there]),
    )


def _row(case: Any, number: int, texts: Sequence[str], folder: Path) -> tuple[str, str, str, str, str]:
    for name in (*REQUIRED, *texts):
        value = case.get(name)
        is_text = isinstance(value, str) or (value is None and name in TEXTS)
        if not is_text or (name in REQUIRED and not value.strip()):
            raise ValueError(
                f"{name} must be a filled text, got {_kind(value)} in row {number}. Download the file again."
            )
        check_unicode(name, value or "", number)
    if case["split"] not in SPLIT:
        raise ValueError(
            f"split must be one of {', '.join(SPLIT)}, got {case['split']!r} in row {number} (case "
            f"{identifier_hash(case['uid'])}). Rename it."
        )
    image = Path(case["image"])
    if image.name != case["image"]:
        raise ValueError(
            f"image must be a file name, got a path in row {number} (case {identifier_hash(case['uid'])}). "
            "Leave the folder out."
        )
    parts = dict.fromkeys((case.get(name) or "").strip() for name in texts)
    report = "\n\n".join(part for part in parts if part)
    return image.stem, case["uid"].strip(), str(folder / image), SPLIT[case["split"]], report


def _kind(value: Any) -> str:
    is_empty = value is None or (isinstance(value, str) and not value.strip())
    return "nothing" if is_empty else f"a {type(value).__name__}"
