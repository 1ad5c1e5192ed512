"""``results.json`` of ``radtower evaluate labels`` -> the agreement section of a card.

No number without its interval and n; data set, class set and label source stand above their table.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radtower.data.model_names import without_machine_path

NOT_MEASURED = "Not measured."
MEAN = "mean of the findings"
_MACRO = "macro_"
_UNDEFINED = re.compile(r"(\d+) of (\d+) resamples undefined and left out")  # a note of a result
_PROVENANCE = (
    "dataset",
    "class_set",
    "label_source",
    "threshold_source",
    "protocol",
    "ci_level",
    "ci_method",
)


def read_agreement(
    path: str | Path | None, model_ids: Sequence[str], generation: str | None = None
) -> dict[str, Any] | None:
    """Read ``results.json``, and refuse that of another labeler or of other settings.

    Args:
        path: The file; None gives None.
        model_ids: Those of the label table.
        generation: ``generation_hash`` of the label table.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is no results file, or of another model or generation.
    """
    if path is None:
        return None
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"results must be a file, got {path}. Evaluate the labels, or leave it out.")
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"metrics", "phantom", "model_id"} <= set(content):
        raise ValueError(f"results must be a results.json, got {path.name}, which lacks its fields.")
    # As radtower evaluate labels writes it.
    expected = ", ".join(sorted({without_machine_path(name) for name in model_ids}))
    measured = ", ".join(sorted(without_machine_path(name) for name in content["model_id"].split(", ")))
    if measured != expected:
        raise ValueError(
            f"results must be of the labeler of these labels, {expected!r}, got those of {measured!r}. "
            "Evaluate this label table."
        )
    if content.get("model_revision") != generation:
        raise ValueError(
            f"results must be of the generation of these labels, {generation or 'none'}, got "
            f"{content.get('model_revision') or 'none'}. Evaluate this label table again."
        )
    return content


def agreement_text(measured: dict[str, Any] | None) -> str:
    """Return Markdown: a table per comparison, findings in rows, metrics in columns.

    Args:
        measured: Content of ``results.json``; None, or no metrics, is said to be not measured.
    """
    if not measured or not measured["metrics"]:
        return NOT_MEASURED
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for item in measured["metrics"]:
        groups.setdefault(tuple(item.get(name) for name in _PROVENANCE), []).append(item)
    parts = [_comparison(items) for items in groups.values()]
    missing = measured.get("not_measured") or []
    return "\n\n".join([*parts, *([f"Not measured: {'; '.join(missing)}."] if missing else [])])


def _comparison(items: list[dict[str, Any]]) -> str:
    first = items[0]
    facts = [
        f"Data: {first['dataset']}",
        f"class set: {first['class_set']}",
        f"label source: {first['label_source']}",
        f"thresholds: {first['threshold_source']}" if first.get("threshold_source") else "",
        first.get("protocol") or "",
        f"in brackets {100 * first.get('ci_level', 0.95):.0f} % intervals ({first['ci_method']})",
    ]
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for item in items:
        row = item.get("finding") or (MEAN if item["metric"].startswith(_MACRO) else None)
        if row is not None:
            rows.setdefault(row, {})[_metric(item)] = item
    if MEAN in rows:
        rows[MEAN] = rows.pop(MEAN)  # at the end
    in_table = [item for row in rows.values() for item in row.values()]
    others = [f"{_words(i['metric'])}: {_cell(i, None)}" for i in items if i not in in_table]
    lines = [". ".join(["; ".join(filter(None, facts)) + "."]), "", *_table(rows), ""]
    lines += [f"- {line}" for line in [*others, *_notes(items)]]
    return "\n".join(lines).rstrip()


def _notes(items: list[dict[str, Any]]) -> list[str]:
    """A line per note, with what it is about; of undefined resamples, what the numbers in the cells mean."""
    defined = [item for item in items if item["value"] is not None]
    about: dict[str, list[dict[str, Any]]] = {}
    resamples = {}
    for item in defined:
        for note in _parts(item):
            if found := _UNDEFINED.fullmatch(note):
                resamples[found[2]] = f"undefined: so many of {found[2]} resamples, not in the interval"
            else:
                about.setdefault(note, []).append(item)
    return [
        *(
            _words(note) + (f": {_subjects(said, defined)}" if len(said) < len(defined) else "")
            for note, said in about.items()
        ),
        *resamples.values(),
    ]


def _subjects(said: list[dict[str, Any]], items: list[dict[str, Any]]) -> str:
    """Name metrics, and findings where a note is not about all that have the metric."""
    subjects = []
    for metric in dict.fromkeys(_metric(item) for item in said):
        findings = [str(item["finding"]) for item in said if _metric(item) == metric and item.get("finding")]
        num_findings = sum(_metric(item) == metric and bool(item.get("finding")) for item in items)
        whose = f" of {', '.join(map(_words, findings))}" if 0 < len(findings) < num_findings else ""
        subjects.append(_words(metric) + whose)
    return "; ".join(subjects)


def _metric(item: dict[str, Any]) -> str:
    return str(item["metric"]).removeprefix(_MACRO)


def _parts(item: dict[str, Any]) -> list[str]:
    return item["note"].split("; ") if item.get("note") else []


def _table(rows: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    heads = ["finding", "n", "present", *map(_words, metrics)]
    lines = [heads, ["---"] * len(heads)]
    for name, row in rows.items():
        sizes = next(iter(row.values()))
        positives = sizes.get("n_positive")
        cells = [_cell(row[metric], sizes["n"]) if metric in row else "" for metric in metrics]
        lines.append([_words(name), str(sizes["n"]), "" if positives is None else str(positives), *cells])
    return [f"| {' | '.join(line)} |" for line in lines] if rows else []


def _cell(item: dict[str, Any], n_of_row: int | None) -> str:
    size = "" if item["n"] == n_of_row else f", n {item['n']}"
    if item["value"] is None:
        return f"{item['note']}{size}"
    undefined = [f", {found[1]} undefined" for note in _parts(item) if (found := _UNDEFINED.fullmatch(note))]
    return f"{item['value']:.3f} ({item['ci_low']:.3f} to {item['ci_high']:.3f}){size}{''.join(undefined)}"


def _words(name: str) -> str:
    return name.replace("_", " ")
