"""What a card says about training data, labels and targets: from ``run.yaml``, and no path of it."""

import re
from pathlib import Path
from typing import Any

import yaml

from radtower.data.targets import TargetPolicy

RUN_RECORD = "run.yaml"
NOT_RECORDED = "not recorded"
NOT_STATED = "not stated by the publisher"
LABEL_COLUMNS = ("gold", "reports", "findings")  # settings of runs on labels in columns
NUMBERS_ARE_TARGETS = "Labels that were numbers in [0, 1] were the targets themselves; -100 was masked."
SCORES_ARE_TARGETS = "Where a label had a score, the score was the target instead, whatever the state."
SILVER = (
    "silver: a label table, which a machine read from the reports. The card of the labels has its agreement"
)
GOLD = "a table of reference labels"
COLUMNS = "columns of the table of studies; who made them is not recorded"
NO_LABELS = "none: the training used none"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_run_record(model_folder: Path) -> dict[str, Any]:
    """Return the content of ``run.yaml``; empty where there is none."""
    path = model_folder / RUN_RECORD
    record = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    return record if isinstance(record, dict) else {}


def training_table(record: dict[str, Any]) -> str:
    """Return a Markdown table about the training data; what nobody recorded is said to be so."""
    run = record.get("run") or {}
    hashed = str(record.get("data"))
    rows = {
        "data": run.get("data_name") or NOT_STATED,
        "license of the data": run.get("data_license") or NOT_STATED,
        "samples trained on": record.get("num_train_samples") or NOT_RECORDED,
        "fingerprint of the data": f"`{hashed[:16]}`" if _SHA256.fullmatch(hashed) else NOT_RECORDED,
        "label source": _label_source(run) if run else NOT_RECORDED,
    }
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def target_rule(record: dict[str, Any]) -> str | None:
    """Return the rule of a training on labels, from its run record; None where there is none.

    Labels come from a label table (``labels``), or from columns of a gold table, a report table or a
    manifest. There they may be numbers: no file of the model says which, so the card states both.
    """
    run = record.get("run") or {}
    if _label_source(run) == NO_LABELS:
        return None
    rule = TargetPolicy(uncertain=run["uncertain"], not_mentioned=run["not_mentioned"]).describe()
    if run.get("soft_targets"):
        return f"{rule} {SCORES_ARE_TARGETS}"
    return rule if run.get("labels") else f"{rule} {NUMBERS_ARE_TARGETS}"


def _label_source(run: dict[str, Any]) -> str:
    if not {"uncertain", "not_mentioned"} <= set(run):
        return NO_LABELS
    if run.get("labels"):
        return SILVER
    if run.get("gold"):
        return GOLD
    return COLUMNS if any(run.get(name) for name in LABEL_COLUMNS) else NO_LABELS


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
