"""``results.json`` -> the table of a card: every number with its interval, size and label source."""

from typing import Any

NOTHING_MEASURED = "Nothing was measured on this model yet."


def results_table(measured: dict[str, Any] | None, nothing: str = NOTHING_MEASURED) -> str:
    """Return a Markdown table.

    Args:
        measured: Content of ``results.json``.
        nothing: What to say where there is none, or it has no metric.
    """
    if not measured or not measured["metrics"]:
        return nothing
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
