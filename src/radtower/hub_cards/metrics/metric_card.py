"""Card of a metric: what its source says about itself, and examples -> ``README.md`` of its Space."""

import ast
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import RepoCard, SpaceCardData

TEMPLATES = Path(__file__).parents[1] / "templates"
# The widget of evaluate 0.4.6 uses parts that gradio 4 no longer has.
_SDK_VERSION = "3.50.2"
_PARTS = {"_DESCRIPTION": "description", "_KWARGS_DESCRIPTION": "arguments", "_CITATION": "citation"}


def write_metric_card(name: str, module: Path, folder: Path, source: str) -> Path:
    """Write ``README.md`` with the front matter of a Space.

    Args:
        name: Of the metric.
        module: Its source, which holds description, arguments and citation.
        folder: Where the card goes.
        source: What ``evaluate.load`` is to be given.

    Returns:
        The card.
    """
    parts = _parts_of(module)
    data = SpaceCardData(
        title=name.replace("_", " "),
        sdk="gradio",
        sdk_version=_SDK_VERSION,
        app_file="app.py",
        pinned=False,
        license="apache-2.0",
        tags=["evaluate", "metric", "radiology", "radtower"],
        description=parts["description"].partition(". ")[0] + ".",
    )
    card = RepoCard.from_template(
        data,
        template_path=str(TEMPLATES / "metric_card.md"),
        name=name,
        source=source,
        sibling=lambda other: source.replace(name, other),
        radtower_version=version("radtower"),
        **parts,
    )
    path = folder / "README.md"
    path.write_text(card.content.rstrip() + "\n", encoding="utf-8")
    return path


def _parts_of(module: Path) -> dict[str, str]:
    """The texts that the metric shows to ``evaluate``, read without importing it."""
    found = {}
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            part = _PARTS.get(node.targets[0].id)
            if part is not None:
                found[part] = str(ast.literal_eval(node.value)).strip()
    return found
