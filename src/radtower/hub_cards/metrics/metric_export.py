"""Turn a metric into a Space that ``evaluate.load`` reads where this package is not installed.

The source of the metrics is data here: it is read, not imported.
"""

import ast
import shutil
import sys
import tempfile
from pathlib import Path
from string import Template

from radtower.hub_cards.code import export_code
from radtower.hub_cards.families import PACKAGE
from radtower.hub_cards.metrics.metric_card import write_metric_card

SOURCES = PACKAGE / "evaluation" / "evaluate_modules"
# What evaluate brings along.
ALLOWED_PACKAGES = frozenset({"datasets", "evaluate", "numpy"}) | sys.stdlib_module_names
REQUIREMENTS = """\
# Of the page: the widget of evaluate 0.4.6 needs gradio 3, which needs numpy below 2, which needs the rest.
# Elsewhere the metric runs with the newest releases, too.
evaluate==0.4.6
datasets<4.2
huggingface_hub<1
numpy<2
pyarrow<21
"""
_APP = Template('''"""The page of the Space: a table to try the metric on."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget

launch_gradio_widget(evaluate.load(str(Path(__file__).parent / "$name.py")))
''')
_FURTHER = """
# What the files above import in turn. evaluate copies the files that are named in this one, and no others.
"""


def metric_names() -> list[str]:
    """Return the names of the metrics that can be exported."""
    return sorted(path.parent.name for path in SOURCES.glob("*/*.py") if path.stem == path.parent.name)


def export_metric(name: str, output: str | Path, repo_id: str | None = None) -> Path:
    """Write the folder of a Space; it appears complete or not at all.

    Args:
        name: Of the metric.
        output: New folder; an older export of the same metric there is replaced.
        repo_id: What the card says to load it by; None says the folder.

    Returns:
        ``output``.

    Raises:
        KeyError: If there is no such metric.
        ValueError: If ``repo_id`` has another name than the metric.
        FileExistsError: If ``output`` holds anything else.
    """
    output = Path(output)
    if name not in metric_names():
        raise KeyError(f"the metric must be one of {', '.join(metric_names())}, got {name!r}.")
    if repo_id is not None and repo_id.partition("/")[2] != name:
        raise ValueError(
            f"the repository must be OWNER/{name}, got {repo_id}: evaluate.load looks for a script of its "
            "name. Keep the name."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        partial = Path(scratch) / output.name
        partial.mkdir()
        _write_code(name, partial)
        (partial / "app.py").write_text(_APP.substitute(name=name), encoding="utf-8")
        (partial / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
        source = repo_id or loaded_by(name, output)
        write_metric_card(name, SOURCES / name / f"{name}.py", partial, source)
        if output.exists():
            _check_replaceable(output, name, {path.name for path in partial.iterdir()})
            shutil.rmtree(output)
        partial.rename(output)
    return output


def loaded_by(name: str, folder: Path) -> str:
    """Return what ``evaluate.load`` takes, beside the folder: a folder of another name needs the file."""
    return f"./{folder.name}" if folder.name == name else f"./{folder.name}/{name}.py"


def _write_code(name: str, folder: Path) -> None:
    written = export_code(
        [SOURCES / name / f"{name}.py"], folder, package=PACKAGE, allowed_packages=ALLOWED_PACKAGES
    )
    main = folder / f"{name}.py"
    text = main.read_text(encoding="utf-8")
    tree = ast.parse(text)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    named = {node.module for node in imports if isinstance(node, ast.ImportFrom) and node.level}
    further = [path.stem for path in written if path.stem not in {name, *named}]
    # No comment at the end of such a line: evaluate takes it for an address to download from.
    lines = [f"from .{module} import __name__ as _{module}\n" for module in further]
    end = max(node.end_lineno or 0 for node in imports)
    rows = text.splitlines(keepends=True)
    more = [_FURTHER, *lines] if lines else []
    main.write_text("".join([*rows[:end], *more, *rows[end:]]), encoding="utf-8")


def _check_replaceable(folder: Path, name: str, written: set[str]) -> None:
    is_export = folder.is_dir() and (folder / f"{name}.py").is_file() and (folder / "app.py").is_file()
    if not is_export or {path.name for path in folder.iterdir()} - written - {"__pycache__"}:
        raise FileExistsError(
            f"output must be new or an earlier export of {name}, got {folder}, which is neither. Choose "
            "another folder."
        )
