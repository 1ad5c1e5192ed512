"""What was measured: ``results.json`` -> the table of a card and the ``model-index`` of its front matter."""

import re
from typing import Any

from huggingface_hub import EvalResult

NOTHING_MEASURED = "Nothing was measured on this model yet."
# A benchmark is named by its id on the Hub, perhaps with a part of it: ``owner/name, test``.
_BENCHMARK = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(?:, .*)?")


def results_section(measured: dict[str, Any] | None) -> str:
    """Return a Markdown table of all numbers, how their intervals were made, and what was not measured."""
    if not measured or not measured["metrics"]:
        return NOTHING_MEASURED
    levels = {item["ci_level"] for item in measured["metrics"]}
    is_one_level = len(levels) == 1
    heading = f"{100 * levels.pop():g} % CI" if is_one_level else "CI"
    lines = [
        f"| metric | value | {heading} | n | class set | label source | data |",
        "|---|---|---|---|---|---|---|",
        *(_row(item, has_level=not is_one_level) for item in measured["metrics"]),
    ]
    methods = sorted({item["ci_method"] for item in measured["metrics"] if item["value"] is not None})
    notes = [f"Intervals: {'; '.join(methods)}."] if methods else []
    notes += [f"Not measured: {reason}" for reason in measured.get("not_measured") or ()]
    return "\n".join(lines) + "".join(f"\n\n{note}" for note in notes)


def _row(item: dict[str, Any], *, has_level: bool) -> str:
    name = " ".join(
        str(part).replace("_", " ")
        for part in (item["metric"], item.get("direction"), item.get("finding"), item.get("protocol"))
        if part
    )
    if item["value"] is None:
        value, interval = "undefined", str(item["note"])
    else:
        value, interval = f"{item['value']:.3f}", f"{item['ci_low']:.3f} to {item['ci_high']:.3f}"
        interval += f" ({100 * item['ci_level']:g} %)" if has_level else ""
    cells = (name, value, interval, item["n"], item["class_set"], item["label_source"], item["dataset"])
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def headlines(measured: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the metrics that stand for all findings at once, and compare with nothing."""
    return [
        item
        for item in (measured or {"metrics": []})["metrics"]
        if item["value"] is not None and item.get("finding") is None and not _is_comparison(item)
    ]


def benchmark_of(measured: dict[str, Any], item: dict[str, Any]) -> str | None:
    """Return the id of the data set on the Hub; None for phantoms and private data: no benchmark."""
    found = None if measured["phantom"] else _BENCHMARK.fullmatch(item["dataset"])
    return found and found["id"]


def model_index(measured: dict[str, Any] | None, task: str) -> list[EvalResult]:
    """Return the headlines as the front matter of a card has them."""
    if measured is None:
        return []
    return [
        EvalResult(
            task_type=task,
            dataset_type=benchmark_of(measured, item) or ("phantom" if measured["phantom"] else "private"),
            dataset_name=item["dataset"],
            metric_type=item["metric"],
            metric_value=round(item["value"], 4),
            metric_name=" ".join(
                str(p) for p in (item["metric"], item.get("direction"), item.get("protocol")) if p
            ),
        )
        for item in headlines(measured)
    ]


def _is_comparison(item: dict[str, Any]) -> bool:
    """Whether it compares with another model, or is of that: no headline for a leaderboard."""
    return str(item["metric"]).endswith(("_difference", "_baseline"))
