"""``requirements.txt`` of an export: what loads it where this package is not installed."""

import re
from importlib.metadata import requires
from pathlib import Path

from radtower.hub_cards.families import Family

REQUIREMENTS_FILE = "requirements.txt"
_NAME = re.compile(r"[\w.-]+")


def write_requirements(folder: Path, family: Family) -> Path:
    """Write the packages of the install line with the versions that this package itself takes."""
    ranges = {_NAME.match(line)[0]: line for line in requires("radtower") or []}  # type: ignore[index]
    path = folder / REQUIREMENTS_FILE
    lines = [f"{ranges[name]}\n" for name in sorted(family.install.split())]
    path.write_text("".join(lines), encoding="utf-8")
    return path
