"""``.eval_results/*.yaml``: headline numbers on benchmarks of the Hub, which list models by them."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from radtower.hub_cards.card_sections.results_section import benchmark_of, headlines

EVAL_FOLDER = ".eval_results"


def write_eval_results(folder: Path, measured: dict[str, Any] | None) -> list[Path]:
    """Write a file per headline number on a benchmark; phantoms and private data are none.

    Args:
        folder: Export folder.
        measured: Content of ``results.json``; None writes nothing.

    Returns:
        The files, in the order of the results.
    """
    if measured is None:
        return []
    written: list[Path] = []
    for item in headlines(measured):
        benchmark = benchmark_of(measured, item)
        if benchmark is None:
            continue
        entry = _entry(item, benchmark, measured["created"])
        path = folder / EVAL_FOLDER / f"{len(written) + 1:02d}-{entry.task_id}.yaml"
        path.parent.mkdir(exist_ok=True)
        content = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        path.write_text(content, encoding="utf-8")
        written.append(path)
    return written


def is_eval_folder(path: Path) -> bool:
    """Whether it is the folder that is written here, and holds nothing else."""
    return path.name == EVAL_FOLDER and all(file.suffix == ".yaml" for file in path.iterdir())


def _entry(item: dict[str, Any], benchmark: str, created: str) -> EvalResultEntry:
    words = " ".join(part for part in (item["metric"], item.get("direction")) if part)
    facts = {
        "data": item["dataset"],
        f"{100 * item['ci_level']:g} % CI": f"{item['ci_low']:.4f} to {item['ci_high']:.4f}",
        "n": item["n"],
        "class set": item["class_set"],
        "label source": item["label_source"],
        "protocol": item.get("protocol") or "none named",
    }
    return EvalResultEntry(
        dataset_id=benchmark,
        task_id=re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_"),
        value=round(item["value"], 4),
        date=created,
        notes="; ".join(f"{name}: {value}" for name, value in facts.items()),
    )
