"""Copy the code a model needs into one flat folder, as remote code of transformers has to be.

Metrics of ``evaluate`` go the same way. ``from ..folder.module import x`` becomes ``from .module import x``,
and where a package is named, so does ``from package.folder.module import x``; anything that would fail on
the machine of a user who lacks this package is refused here instead.
"""

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

from radtower.hub_cards.code_safety import refuse_unsafe_code

ALLOWED_PACKAGES = frozenset({"torch", "transformers", "huggingface_hub"}) | sys.stdlib_module_names


def export_code(
    entry_files: Iterable[Path],
    output_dir: Path,
    *,
    package: Path | None = None,
    allowed_packages: frozenset[str] = ALLOWED_PACKAGES,
) -> list[Path]:
    """Copy ``entry_files`` and every package file they import, flattened.

    Args:
        entry_files: Modules with the classes named in ``auto_map``, or of a metric.
        output_dir: Existing folder; files of the same name are overwritten.
        package: Folder of the package that absolute imports are followed into; None refuses these imports.
        allowed_packages: What a user of the export has.

    Returns:
        The files written, sorted by name.

    Raises:
        ValueError: If a file imports a package outside ``allowed_packages``, has a relative import that
            cannot be flattened, or a line of text that transformers would mistake for one, or two files
            share a name, or a file does more than compute (``code_safety.py``).
    """
    sources: dict[str, Path] = {}
    queue = [path.resolve() for path in entry_files]
    while queue:
        source = queue.pop(0)
        known = sources.setdefault(source.name, source)
        if known != source:
            raise ValueError(
                f"exported files must have unique names, got {source} and {known}. Rename one: the Hub "
                "folder is flat."
            )
        text, imported = _flatten(source, package, allowed_packages)
        (output_dir / source.name).write_text(text, encoding="utf-8")
        queue += [path for path in imported if sources.get(path.name) != path]
    written = [output_dir / name for name in sorted(sources)]
    refuse_unsafe_code(written, allowed_packages)
    return written


def _flatten(source: Path, package: Path | None, allowed: frozenset[str]) -> tuple[str, list[Path]]:
    """Text with flat imports, and the package files it imports."""
    text = source.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    imported: list[Path] = []
    flat_lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_of_package(node, package):
            if node.module is None or node.col_offset > 0 or node.names[0].name == "*":
                raise ValueError(
                    f"{source.name}:{node.lineno} has a relative import that cannot be flattened. "
                    "Write `from .module import name` at the top of the file."
                )
            imported.append(_file_of(node, source, package))
            line, module = lines[node.lineno - 1], "." * node.level + node.module
            lines[node.lineno - 1] = line.replace(module, "." + imported[-1].stem, 1)
            flat_lines.add(node.lineno)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            _refuse_foreign(node, source, allowed)
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("from .") and number not in flat_lines:
            raise ValueError(
                f"{source.name}:{number} has text that reads like a relative import, which transformers "
                "would follow. Reword the line."
            )
    return "".join(lines), imported


def _is_of_package(node: ast.ImportFrom, package: Path | None) -> bool:
    """Whether it is a relative import, or an absolute one from the package that is followed."""
    return node.level > 0 or (package is not None and (node.module or "").split(".")[0] == package.name)


def _file_of(node: ast.ImportFrom, source: Path, package: Path | None) -> Path:
    parts = (node.module or "").split(".")
    if node.level > 0 or package is None:
        return source.parents[node.level - 1].joinpath(*parts).with_suffix(".py")
    return package.joinpath(*parts[1:]).with_suffix(".py")


def _refuse_foreign(node: ast.Import | ast.ImportFrom, source: Path, allowed: frozenset[str]) -> None:
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    for package in sorted({name.split(".")[0] for name in names} - allowed):
        raise ValueError(
            f"{source.name}:{node.lineno} imports {package}, which a Hub user may not have. "
            "Move that code to a module that is not exported."
        )
