"""Report table -> pairs table: what belongs together, what is wrong, and who is no negative of whom."""

import hashlib
import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from radtower.data.reports.corruption import corrupt_many
from radtower.data.reports.pairs import COLUMNS
from radtower.data.reports.report_corpus import ReportTable
from radtower.data.reports.rewriting import rewrite
from radtower.processing.report_text import canonical_text

LabelKeys = Literal["labels", "text"]
Task = Literal["findings_impression", "report_rewrite"]
TASKS: tuple[Task, ...] = get_args(Task)
NORMAL = "normal"
# Label columns that say that nothing is there; Open-i has such a term.
_NORMAL_LABELS = {"normal"}
# Sentences that say no more than "normal". Such impressions are answers to each other's findings.
_NORMAL_SENTENCE = re.compile(
    r"(?:there (?:is|are|was|were) )?(?:no|negative for|without)(?: evidence (?:of|for))?"
    r"(?: (?:an?|any|acute|active|significant|definite|radiographic|evidence of|evidence for|or|and|cardiac"
    r"|cardiopulmonary|cardiothoracic|chest|intrathoracic|pleural|pulmonary|thoracic|preoperative))*"
    r" (?:abnormalit(?:y|ies)|disease|process(?:es)?|findings?|patholog(?:y|ies))"
    r"(?: (?:is|was|are|were))?(?: (?:identified|seen|detected|noted|demonstrated|observed))?"
    r"|(?:normal|negative|unremarkable)(?: (?:chest|thorax|study|exam(?:ination)?|ct|radiographs?|x-xxxx"
    r"|x-rays?|of the|pa and lateral))*"
    r"|(?:the )?(?:lungs are )?clear(?: lungs)?"
    r"|(?:(?:thora(?:x|cic)|chest|ct|examination|exam|findings|study|is|are) ?)*(?:with)?in normal limits"
    r"|chest radiographs?"
)


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """What ``build_pairs`` makes.

    Args:
        tasks: ``findings_impression`` pairs the sections of a study; ``report_rewrite`` pairs a report with
            itself in other words.
        num_negatives: Corruptions of the positive per row, at most.
        label_keys: What makes two rows of ``findings_impression`` no negatives of each other. ``labels``: the
            same labels, or both impressions say "normal"; ``text``: the same impression, but for case,
            numbering and punctuation, or both say "normal". A study with an unknown label, or with none of
            the labels, goes by its text. Rows of ``report_rewrite`` go by the text of the report.
        seed: Of rewriting and corruption; a row depends on it and on its study, not on other rows.

    Raises:
        ValueError: If a value is unknown or out of range.
    """

    tasks: tuple[Task, ...] = TASKS
    num_negatives: int = 3
    label_keys: LabelKeys = "labels"
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown or not self.tasks:
            raise ValueError(f"tasks must be of {', '.join(TASKS)}, got {unknown or 'none'}. Name one.")
        if self.num_negatives < 0:
            raise ValueError(f"num_negatives must not be negative, got {self.num_negatives}. Use 0 for none.")
        if self.label_keys not in get_args(LabelKeys):
            known = ", ".join(get_args(LabelKeys))
            raise ValueError(f"label_keys must be one of {known}, got {self.label_keys!r}. Choose one.")


def build_pairs(table: ReportTable, options: PairOptions = PairOptions()) -> pd.DataFrame:
    """Make pairs of the studies of a table; a study that cannot give one gives none.

    Args:
        table: Studies; findings and impression are paired where a study has both.
        options: Tasks, negatives and keys.

    Returns:
        The columns of :mod:`radtower.data.reports.pairs`, one task after the other.

    Raises:
        ValueError: If there is no pair at all.
    """
    rows = []
    for task in options.tasks:
        for study, labels in zip(table.frame.to_dict("records"), table.labels, strict=True):
            rng = study_rng(study["study_id"], task, options.seed)
            texts = _pair_of(study, task, rng)
            if texts is None:
                continue
            if task == "findings_impression":
                key = _label_key(study["impression"], labels, table.label_names, options.label_keys)
            else:
                key = _text_key(study["report"])
            wrong = corrupt_many(texts[1], options.num_negatives, rng)
            rows.append(
                {
                    "query": texts[0],
                    "positive": texts[1],
                    "negatives": [corruption.text for corruption in wrong],
                    "negative_kinds": [corruption.kind for corruption in wrong],
                    "source": f"{study['source']}/{task}",
                    "instruction": None,
                    "label_key": key,
                    "study_id": study["study_id"],
                    "split": study["split"],
                }
            )
    if not rows:
        raise ValueError(
            f"at least one study must give a pair, got none of {len(table)} for {', '.join(options.tasks)}. "
            "Split the reports into findings and impression."
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def study_rng(study_id: str, purpose: str, seed: int) -> np.random.Generator:
    """A random generator that depends on the study and not on its row."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{study_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8]))


def _pair_of(study: dict[Hashable, Any], task: Task, rng: np.random.Generator) -> tuple[str, str] | None:
    if task == "findings_impression":
        query, positive = study["findings"], study["impression"]
    else:
        query, positive = study["report"], rewrite(study["report"], rng)
    return (query, positive) if query and positive else None


def is_normal_impression(impression: str) -> bool:
    """Whether every sentence says no more than "normal", as "No acute cardiopulmonary findings." does."""
    sentences = [sentence for sentence in re.split(r"[.;!]|(?:^|\s)\d+[.)]", impression.lower()) if sentence]
    plain = [" ".join(re.findall(r"[\w-]+", sentence)) for sentence in sentences]
    kept = [sentence for sentence in plain if sentence]
    return bool(kept) and all(_NORMAL_SENTENCE.fullmatch(sentence) for sentence in kept)


def _label_key(impression: str, labels: np.ndarray, names: tuple[str, ...], keys: LabelKeys) -> str:
    if is_normal_impression(impression):
        return NORMAL
    present = [name for name, value in zip(names, labels, strict=True) if value == 1]
    # One unknown label may be what tells two studies apart, and no label at all says "none of these", not
    # "normal": what is not in the list may be the whole impression.
    if keys == "text" or not present or (labels < 0).any():
        return _text_key(impression)
    return "labels:" + ",".join(present) if set(present) - _NORMAL_LABELS else NORMAL


def _text_key(text: str) -> str:
    return "text:" + hashlib.sha256(canonical_text(text).encode()).hexdigest()[:16]
