"""The card of a label data set: every number is counted in the label table or read from ``results.json``.

Axes: F findings.
"""

import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import DatasetCard, DatasetCardData

from radtower.data.model_names import without_machine_path
from radtower.hub_cards.card_sections.citations import bibtex
from radtower.hub_cards.labels.agreement_table import agreement_text
from radtower.hub_cards.labels.class_balance_plot import COLORS
from radtower.hub_cards.labels.label_release import LabelRelease

TEMPLATE = Path(__file__).parents[1] / "templates" / "label_card.md"
PLOT_FILE = "assets/class_balance.png"
PAPERS = ("2509.13175", "2603.06467")  # of towers that are trained on silver labels
NO_ANSWER = "no answer"
TWO_STATE_LABELERS = frozenset({"encoder"})  # they say present or absent, whatever the report leaves open
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}


def class_counts(release: LabelRelease) -> pd.DataFrame:
    """Return ``(F, 5)`` rows of the data set by finding and state; no answer is a failed report."""
    statuses = release.statuses()
    counts = {}
    for finding in release.findings.findings:
        of_state = Counter(cell if isinstance(cell, str) else NO_ANSWER for cell in statuses[finding.key])
        counts[finding.name] = [of_state[state] for state in COLORS]
    return pd.DataFrame.from_dict(counts, orient="index", columns=list(COLORS))


def size_category(num_rows: int) -> str:
    """Return what the Hub calls a data set of so many rows."""
    return next((name for limit, name in _SIZES.items() if num_rows < limit), "n>1M")


def is_phantom(release: LabelRelease, measured: dict[str, Any] | None) -> bool:
    """Whether the publisher, the ids or the results say that the reports are synthetic."""
    return release.is_phantom or bool(measured and measured["phantom"])


def label_card(release: LabelRelease, measured: dict[str, Any] | None) -> str:
    """Return the text of ``README.md``.

    Args:
        release: What is published.
        measured: Content of ``results.json``; None says that nothing was measured.
    """
    options = release.options
    num_rows = sum(release.splits.values())
    data = DatasetCardData(
        license=options.license_id,
        language=[options.language],
        task_categories=["image-classification", "text-classification"],
        size_categories=[size_category(num_rows)],
        tags=["radiology", "radtower", "silver-labels", "research-only"],
        pretty_name=options.repo_id.rpartition("/")[2],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}.parquet"} for split in release.splits],
            }
        ],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        release=release,
        options=options,
        name=options.repo_id.rpartition("/")[2],
        num_rows=num_rows,
        first_split=next(iter(release.splits)),
        is_phantom=is_phantom(release, measured),
        provenance=_provenance(release),
        agreement=agreement_text(measured),
        is_measured=bool(measured and measured["metrics"]),
        balance=class_counts(release),
        plot=PLOT_FILE,
        bibtex=bibtex(PAPERS),
        radtower_version=version("radtower"),
    )
    return card.content.rstrip() + "\n"


def _provenance(release: LabelRelease) -> dict[str, Any]:
    """Who labeled, with what outcome and at what price; over the label table, one row per unique report."""
    frame = release.labels.frame
    errors = frame["error"].dropna()
    return {
        "labelers": _values(frame["labeler"]),
        "two_state_rows": _two_state_rows(set(frame["labeler"])),
        "models": _values(frame["model_id"].map(without_machine_path)),
        "prompts": _values(frame["prompt_version"]) or "none: the labeler takes no prompt",
        "settings": _settings(release),
        "num_reports": len(frame),
        "num_labeled": len(frame) - len(errors),
        "failures": dict(sorted(Counter(errors).items(), key=lambda item: (-item[1], item[0]))),
        "num_dropped_evidence": release.labels.num_dropped_evidence,
        "tokens_in": _sum(frame["tokens_in"], "{:,.0f}"),
        "tokens_out": _sum(frame["tokens_out"], "{:,.0f}"),
        "cost": _sum(frame["cost_usd"], "{:,.4f} USD"),
    }


def _two_state_rows(labelers: set[str]) -> str | None:
    """Name the rows whose labeler cannot say uncertain or not mentioned; None where there are none."""
    if labelers <= TWO_STATE_LABELERS:
        return "all rows"
    names = sorted(labelers & TWO_STATE_LABELERS)
    return f"rows of the labeler {', '.join(names)}" if names else None


def _settings(release: LabelRelease) -> dict[str, str]:
    """What the answers depend on besides model, prompt and findings, where the table says so."""
    parts = release.labels.generation.items()
    settings = {
        name.removeprefix("settings."): value for name, value in parts if name.startswith("settings.")
    }
    shown = {name.replace("_", " "): "none" if v is None else str(v) for name, v in settings.items()}
    if settings.get("fields") is not None:
        shown["fields"] = _names_of_fields(shown["fields"])
    return shown


def _names_of_fields(text: str) -> str:
    """Name further fields of the request, never their values: a user or a token may be among them."""
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return "not published"
    return ", ".join(sorted(fields)) or "none"


def _values(column: pd.Series) -> str:
    """Name what is in a column, with counts where there is more than one value."""
    counts = Counter(column.dropna())
    if len(counts) < 2:
        return "".join(counts)
    return ", ".join(f"{value} ({count} reports)" for value, count in sorted(counts.items()))


def _sum(column: pd.Series, form: str) -> str:
    known = column.dropna()
    if known.empty:
        return "not recorded"
    total = form.format(known.sum())
    return total if len(known) == len(column) else f"{total}, recorded for {len(known)} reports"
