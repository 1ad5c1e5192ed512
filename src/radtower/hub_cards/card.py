"""Model card: configuration, processor settings and ``results.json`` -> ``README.md`` of the export."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from radtower.data.targets import TargetPolicy
from radtower.hub_cards.families import Family
from radtower.hub_cards.sentence_transformers_files import has_own_prompts

TEMPLATES = Path(__file__).parent / "templates"
NOTHING_MEASURED = "Nothing was measured on this model yet."
LABEL_COLUMNS = ("gold", "reports", "findings")  # settings of runs on labels in columns
NUMBERS_ARE_TARGETS = "Labels that were numbers in [0, 1] were the targets themselves; -100 was masked."
SCORES_ARE_TARGETS = "Where a label had a score, the score was the target instead, whatever the state."


def write_card(
    folder: Path,
    family: Family,
    config: dict[str, Any],
    results: Path | None,
    license_id: str | None,
    target_rule: str | None = None,
) -> Path:
    """Write ``README.md`` into an export folder; every number in it comes from ``results``.

    Args:
        folder: Export folder, with its processor settings already there.
        family: How the model is loaded.
        config: Content of ``config.json``.
        results: ``results.json``; None writes that nothing was measured.
        license_id: License of the weights, as the Hub abbreviates it. None states none.
        target_rule: What the model was trained to say about each status; None where it is not known.

    Returns:
        The card.
    """
    measured = None if results is None else json.loads(results.read_text(encoding="utf-8"))
    name = folder.name
    data = ModelCardData(
        license=license_id,
        library_name="transformers",
        pipeline_tag=family.pipeline_tag(config),
        tags=["radiology", "radtower", config["model_type"], "research-only"],
        model_name=name,
        eval_results=_eval_results(measured, family.pipeline_tag(config)) or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / family.template),
        model_name=name,
        install=family.install,
        config=config,
        processor=_processor_settings(folder),
        results_table=_results_table(measured),
        has_sentence_transformers=(folder / "modules.json").exists(),
        has_own_prompts=(folder / "modules.json").exists() and has_own_prompts(folder, config),
        is_phantom=bool(measured and measured["phantom"]),
        findings=_findings(config),
        target_rule=target_rule,
        radtower_version=version("radtower"),
    )
    path = folder / "README.md"
    path.write_text(card.content.rstrip() + "\n", encoding="utf-8")
    return path


def target_rule(model_folder: Path) -> str | None:
    """Return the rule of a training on labels, from its ``run.yaml``; None where there is none.

    Labels come from a label table (``labels``), or from columns of a gold table, a report table or a
    manifest. There they may be numbers: no file of the model says which, so the card states both.
    """
    path = model_folder / "run.yaml"
    record = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    run = (record.get("run") if isinstance(record, dict) else None) or {}
    has_columns = any(run.get(name) for name in LABEL_COLUMNS)
    if not {"uncertain", "not_mentioned"} <= set(run) or not (run.get("labels") or has_columns):
        return None
    rule = TargetPolicy(uncertain=run["uncertain"], not_mentioned=run["not_mentioned"]).describe()
    if run.get("soft_targets"):
        return f"{rule} {SCORES_ARE_TARGETS}"
    return rule if run.get("labels") else f"{rule} {NUMBERS_ARE_TARGETS}"


def _findings(config: dict[str, Any]) -> list[str]:
    return list(config.get("findings") or (config.get("id2label") or {}).values())


def _processor_settings(folder: Path) -> dict[str, Any]:
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            settings: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
            return settings
    return {}


def _results_table(measured: dict[str, Any] | None) -> str:
    if not measured or not measured["metrics"]:
        return NOTHING_MEASURED
    lines = [
        "| metric | value | 95 % CI | n | class set | label source | data |",
        "|---|---|---|---|---|---|---|",
    ]
    for item in measured["metrics"]:
        name = " ".join(
            str(part).replace("_", " ")
            for part in (item["metric"], item.get("direction"), item.get("finding"), item.get("protocol"))
            if part
        )
        if item["value"] is None:
            value, interval = "undefined", str(item["note"])
        else:
            value, interval = f"{item['value']:.3f}", f"{item['ci_low']:.3f} to {item['ci_high']:.3f}"
        cells = (name, value, interval, item["n"], item["class_set"], item["label_source"], item["dataset"])
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _eval_results(measured: dict[str, Any] | None, task: str) -> list[EvalResult]:
    """Headline metrics for the ``model-index`` of the card: those that stand for all findings at once."""
    if measured is None:
        return []
    return [
        EvalResult(
            task_type=task,
            dataset_type="phantom" if measured["phantom"] else "private",
            dataset_name=item["dataset"],
            metric_type=item["metric"],
            metric_value=round(item["value"], 4),
            metric_name=" ".join(
                str(p) for p in (item["metric"], item.get("direction"), item.get("protocol")) if p
            ),
        )
        for item in measured["metrics"]
        if item["value"] is not None and item.get("finding") is None and not _is_comparison(item)
    ]


def _is_comparison(item: dict[str, Any]) -> bool:
    """Whether it compares with another model, or is of that: no headline for a leaderboard."""
    return str(item["metric"]).endswith(("_difference", "_baseline"))
