"""Report table -> pairs table: findings with their impression, and who is no negative of whom."""

import hashlib
import re
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from radtower.data.reports.pairs import COLUMNS
from radtower.data.reports.report_corpus import ReportTable

LabelKeys = Literal["labels", "text"]
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


def build_pairs(table: ReportTable, label_keys: LabelKeys = "labels") -> pd.DataFrame:
    """Pair the findings of each study with its impression.

    Args:
        table: Studies; those without both sections give no pair.
        label_keys: What makes two rows no negatives of each other. ``labels``: the same labels, or both
            impressions say "normal"; ``text``: the same impression, but for case, numbering and punctuation,
            or both say "normal". A study without known labels goes by its text.

    Returns:
        The columns of :mod:`radtower.data.reports.pairs`.

    Raises:
        ValueError: If ``label_keys`` is unknown, or no study has both sections.
    """
    if label_keys not in get_args(LabelKeys):
        raise ValueError(f"label_keys must be one of {', '.join(get_args(LabelKeys))}, got {label_keys!r}.")
    paired = table.with_both_sections()
    if not len(paired):
        raise ValueError(
            f"a study must have findings and an impression, got none among {len(table)}. "
            "Split the reports into sections first."
        )
    rows: list[dict[str, Any]] = [
        {
            "query": study["findings"],
            "positive": study["impression"],
            "negatives": [],
            "negative_kinds": [],
            "source": f"{study['source']}/findings_impression",
            "instruction": None,
            "label_key": _label_key(study["impression"], labels, paired.label_names, label_keys),
            "study_id": study["study_id"],
            "split": study["split"],
        }
        for study, labels in zip(paired.frame.to_dict("records"), paired.labels, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def is_normal_impression(impression: str) -> bool:
    """Whether every sentence says no more than "normal", as "No acute cardiopulmonary findings." does."""
    sentences = [sentence for sentence in re.split(r"[.;!]|(?:^|\s)\d+[.)]", impression.lower()) if sentence]
    plain = [" ".join(re.findall(r"[\w-]+", sentence)) for sentence in sentences]
    kept = [sentence for sentence in plain if sentence]
    return bool(kept) and all(_NORMAL_SENTENCE.fullmatch(sentence) for sentence in kept)


def canonical_text(text: str) -> str:
    """Lower-case words without list numbers and punctuation: equal where a reader sees no difference."""
    without_numbers = re.sub(r"(?:^|(?<=[\s.;]))\d+[.)](?=\s)", " ", text.lower())
    return " ".join(re.findall(r"[\w%+<>=/-]+(?:\.\d+)?", without_numbers))


def _label_key(impression: str, labels: np.ndarray, names: tuple[str, ...], keys: LabelKeys) -> str:
    if is_normal_impression(impression):
        return NORMAL
    if keys == "labels" and (labels >= 0).any():
        present = [name for name, value in zip(names, labels, strict=True) if value == 1]
        return "labels:" + ",".join(present) if set(present) - _NORMAL_LABELS else NORMAL
    return "text:" + hashlib.sha256(canonical_text(impression).encode()).hexdigest()[:16]
