"""Model card: configuration, processor settings, run and results -> ``README.md`` of the export."""

import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from radtower.hub_cards.card_sections.citations import bibtex
from radtower.hub_cards.card_sections.compute_section import compute_table
from radtower.hub_cards.card_sections.eval_results import write_eval_results
from radtower.hub_cards.card_sections.pictures_section import (
    CardPicture,
    phantom_pictures,
    report_pictures,
    write_pictures,
)
from radtower.hub_cards.card_sections.results_section import model_index, results_section
from radtower.hub_cards.card_sections.training_section import target_rule, training_table
from radtower.hub_cards.families import Family
from radtower.hub_cards.sentence_transformers_files import has_own_prompts

TEMPLATES = Path(__file__).parent / "templates"
TAIL = "model_tail.md"  # the sections that all families share


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """What a card says beside what the model says of itself.

    Args:
        results: ``results.json``; None writes that nothing was measured.
        license_id: License of the weights, as the Hub abbreviates it. None states none.
        report: Folder of ``radtower report`` of these results, for its curves and intervals.
        pictures: Further pictures, shown last.
    """

    results: Path | None = None
    license_id: str | None = None
    report: Path | None = None
    pictures: tuple[CardPicture, ...] = ()


def write_card(
    folder: Path,
    family: Family,
    config: dict[str, Any],
    content: CardContent,
    record: dict[str, Any],
) -> Path:
    """Write ``README.md`` and ``.eval_results``; every number is one of the results or ``record``.

    Args:
        folder: Export folder, with its processor settings already there.
        family: How the model is loaded.
        config: Content of ``config.json``.
        content: Results, license, pictures.
        record: Content of the ``run.yaml`` of the training; empty where there is none.

    Returns:
        The card.
    """
    results = content.results
    measured = None if results is None else json.loads(results.read_text(encoding="utf-8"))
    pictures = [
        *report_pictures(content.report, measured),
        *phantom_pictures(results, measured),
        *content.pictures,
    ]
    name = folder.name
    data = ModelCardData(
        license=content.license_id,
        library_name="transformers",
        pipeline_tag=family.pipeline_tag(config),
        tags=["radiology", "radtower", config["model_type"], "research-only"],
        model_name=name,
        eval_results=model_index(measured, family.pipeline_tag(config)) or None,
    )
    card = ModelCard.from_template(
        data,
        template_str="".join(
            (TEMPLATES / part).read_text(encoding="utf-8") for part in (family.template, TAIL)
        ),
        model_name=name,
        install=family.install,
        config=config,
        processor=_processor_settings(folder),
        results=results_section(measured),
        pictures=write_pictures(folder, pictures),
        training=training_table(record),
        compute=compute_table(record),
        bibtex=bibtex(family.papers),
        has_sentence_transformers=(folder / "modules.json").exists(),
        has_own_prompts=(folder / "modules.json").exists() and has_own_prompts(folder, config),
        is_phantom=bool(measured and measured["phantom"]),
        findings=_findings(config),
        target_rule=target_rule(record),
        radtower_version=version("radtower"),
    )
    write_eval_results(folder, measured)
    path = folder / "README.md"
    # Conditions of the templates leave empty lines.
    path.write_text(re.sub(r"\n{3,}", "\n\n", card.content).rstrip() + "\n", encoding="utf-8")
    return path


def _findings(config: dict[str, Any]) -> list[str]:
    names = config.get("findings") or (config.get("id2label") or {}).values()
    return [" ".join(str(name).split()) for name in names]  # a line break would begin a section


def _processor_settings(folder: Path) -> dict[str, Any]:
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            settings: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
            return settings
    return {}
