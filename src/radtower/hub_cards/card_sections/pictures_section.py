"""Pictures beside ``results.json`` -> ``card_images/`` of an export and a section of its card.

They show scans, so they are taken along where the results say that the scans are synthetic, and nowhere else.
"""

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

IMAGE_FOLDER = "card_images"
_CAPTIONS = "captions.json"


def copy_pictures(folder: Path, results: Path | None, measured: dict[str, Any] | None) -> str:
    """Copy the pictures of phantom results and return the Markdown that shows them; empty without any.

    Raises:
        ValueError: If the pictures are of other results.
    """
    if results is None or measured is None or not measured["phantom"]:
        return ""
    source = results.with_suffix(".figures")
    if not (source / _CAPTIONS).is_file():
        return ""
    captions = json.loads((source / _CAPTIONS).read_text(encoding="utf-8"))
    if datetime.fromisoformat(captions["created"]) != datetime.fromisoformat(measured["created"]):
        raise ValueError(
            f"{source.name} must be of the results beside it, got {captions['created']} where they say "
            f"{measured['created']}. Draw the pictures again, or delete the folder."
        )
    (folder / IMAGE_FOLDER).mkdir()
    parts = []
    for figure in captions["figures"]:
        name = Path(figure["file"]).name  # never out of the folder
        shutil.copyfile(source / name, folder / IMAGE_FOLDER / name)
        parts.append(f"![{figure['alt']}]({IMAGE_FOLDER}/{name})\n\n{figure['title']}. {figure['caption']}")
    return "\n\n".join(parts)


def is_image_folder(path: Path) -> bool:
    """Whether it is the folder that is written here, and holds nothing else."""
    return path.name == IMAGE_FOLDER and all(file.suffix == ".png" for file in path.iterdir())
