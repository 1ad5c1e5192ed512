"""The layer table and the size limits of the house style, enforced."""

import ast
from pathlib import Path

import pytest

import radtower

PACKAGE = Path(radtower.__file__).parent
MAY_IMPORT: dict[str, set[str]] = {
    "configuration": set(),
    "modeling": {"configuration"},
    "processing": set(),
    "labeling": {"processing"},
    "data": {"processing", "labeling"},
    "evaluation": {"configuration", "modeling", "processing", "data"},
    "training": {"configuration", "modeling", "processing", "data", "evaluation"},
    "hub_cards": {"configuration", "modeling", "processing", "labeling", "data"},
}
MAY_IMPORT["demo"] = set(MAY_IMPORT)
MAY_IMPORT["cli"] = set(MAY_IMPORT)
MODULES = sorted(PACKAGE.glob("*/**/*.py"))
LINE_LIMIT = {"modeling": 500}


def _relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_imports_only_what_its_row_allows(path):
    folder = path.relative_to(PACKAGE).parts[0]
    assert folder in MAY_IMPORT, f"{folder}/ has no row in the layer table"
    forbidden = _folders_imported_by(path) - MAY_IMPORT[folder] - {folder}
    assert not forbidden, f"{folder}/ may import {sorted(MAY_IMPORT[folder])}, not {sorted(forbidden)}"


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_is_short_enough_to_read(path):
    limit = LINE_LIMIT.get(path.name.split("_")[0], 400)
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= limit, f"{path.name} has {num_lines} lines, more than {limit}: split it by concept"


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_opens_with_its_purpose(path):
    text = path.read_text(encoding="utf-8")
    if path.name == "__init__.py":
        assert text == "", "sub-folder __init__.py files are empty: one internal path per name"
    else:
        assert ast.get_docstring(ast.parse(text)), f"{path.name} does not say what it is for"


def test_every_folder_of_the_layer_table_exists():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(MAY_IMPORT)


def _folders_imported_by(path: Path) -> set[str]:
    folders: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level >= 2:  # a sibling file of that name is no folder of the table
                folders.add(parts[0])
            elif node.level == 0 and parts[0] == "radtower":
                folders |= set(parts[1:2]) or {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            folders |= {a.name.split(".")[1] for a in node.names if a.name.startswith("radtower.")}
    return folders & set(MAY_IMPORT)
