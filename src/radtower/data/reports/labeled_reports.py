"""Reports with training targets per finding, by split: what a labeler learns from and is measured on.

Axes: N reports, F findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from radtower.data.csv_table import read_csv_table
from radtower.data.manifest import read_manifest
from radtower.data.reports.report_corpus import ReportTable, read_report_table
from radtower.data.targets import MASKED_TARGET, TargetPolicy
from radtower.labeling.findings import load_findings
from radtower.labeling.label_table import LabelTable, read_labels
from radtower.processing.report_text import normalize_report, report_sha256


@dataclass(frozen=True)
class LabeledReports:
    """Reports and what is known about them.

    Attributes:
        texts: N normalized reports, none empty.
        targets: ``(N, F)`` float32 in [0, 1], or -100 where unknown; no row is all unknown.
    """

    texts: tuple[str, ...]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class LabeledSplits:
    """What is trained on and what is measured.

    Attributes:
        keys: F findings, in the order of the table.
        train: Reports of the split ``train``.
        validation: Reports of ``validation`` whose text is not in ``train``. None where there are none.
        notes: Sentences about what was left out or is weak.
    """

    keys: tuple[str, ...]
    train: LabeledReports
    validation: LabeledReports | None
    notes: tuple[str, ...]


def read_gold_splits(
    manifest: str | Path, gold: str | Path, policy: TargetPolicy, findings: str | Path | None = None
) -> LabeledSplits:
    """Read the studies of a manifest that have a row in a gold table.

    Args:
        manifest: Table of studies with their reports and splits.
        gold: CSV with ``study_id`` and a column per finding: status values, or numbers in [0, 1] or -100.
        policy: Rule for status values.
        findings: Findings set that chooses the columns, by key or name. None takes them all.

    Raises:
        ValueError: If a gold row belongs to no study, a study has two, a finding has no column or no known
            label, a label is -1, a row has too many or too few fields, or there is nothing to train on.
    """
    # The volumes of a study share its report.
    studies = read_manifest(manifest).frame.drop_duplicates("study_id").set_index("study_id")
    table = read_csv_table(gold).set_index("study_id")
    num_repeated = int(table.index.duplicated().sum())
    if num_repeated:
        raise ValueError(f"gold must have one row per study, got {num_repeated} repeats. Remove them.")
    num_unknown = len(set(table.index) - set(studies.index))
    if num_unknown:
        raise ValueError(
            f"gold must hold studies of the manifest, got {num_unknown} of {len(table)} that are not in it. "
            "Pair the two files of one data set."
        )
    columns = _choose_columns(list(table.columns), findings)
    targets = policy.targets_from_cells(table[list(columns.values())])
    chosen = studies.loc[table.index]
    return _split(list(columns), list(chosen["report"]), list(chosen["split"]), targets)


def read_table_splits(
    reports: str | Path, policy: TargetPolicy, text_column: str = "report", findings: str | Path | None = None
) -> LabeledSplits:
    """Read a report table, or a manifest, that has its labels in columns of its own.

    Args:
        reports: See :func:`read_report_table`, which says what a label column is.
        policy: Rule for status values.
        text_column: ``report``, ``findings`` or ``impression``.
        findings: Findings set that chooses the columns, by key or name. None takes all label columns.

    Raises:
        ValueError: If there is no label column, a finding has none or no known label, a label is -1, or there
            is nothing to train on.
    """
    table = read_report_table(reports, policy)
    if not table.label_names:
        raise ValueError(
            "reports must have label columns of 0, 1, -100 or status values where no labels are given, got "
            f"none in {Path(reports).name}. Name a labels.parquet."
        )
    columns = _choose_columns(list(table.label_names), findings)
    targets = table.labels[:, [table.label_names.index(name) for name in columns.values()]]
    return _split(list(columns), *_texts_and_splits(table, text_column), targets)


def read_silver_splits(
    reports: str | Path,
    labels: str | Path,
    policy: TargetPolicy,
    text_column: str = "report",
    findings: str | Path | None = None,
    *,
    has_soft_targets: bool = False,
) -> LabeledSplits:
    """Read a report table whose labels another labeler gave: distillation.

    Args:
        reports: Report table or manifest with the texts and splits.
        labels: ``labels.parquet``, joined by the hash of the normalized text.
        policy: Rule for statuses.
        text_column: Column that was labeled: ``report``, ``findings`` or ``impression``.
        findings: Findings set that chooses the columns, by key or name. None takes them all.
        has_soft_targets: Whether the target of training is the score where one was measured, whatever the
            status. Validation keeps the targets of the statuses.

    Raises:
        ValueError: If a report of ``train`` or ``validation`` was never labeled, a label is of no report, a
            finding has no column or no known label, or there is nothing to train on.
    """
    table = read_report_table(reports)
    silver = read_labels(labels)
    columns = _choose_columns(list(silver.keys), findings)
    texts, splits = _texts_and_splits(table, text_column)
    rows = _silver_rows(silver, texts, splits)
    is_joined = rows >= 0
    rows = rows[is_joined]
    statuses = silver.status_frame.iloc[rows][list(columns.values())]
    targets = policy.targets_from_status(statuses)
    soft = None
    if has_soft_targets:
        scores = silver.score_matrix(list(columns.values()))[rows]
        has_score = ~np.isnan(scores) & statuses.notna().to_numpy()
        soft = np.where(has_score, scores, targets).astype(np.float32)
    return _split(list(columns), _kept(texts, is_joined), _kept(splits, is_joined), targets, soft)


def _silver_rows(silver: LabelTable, texts: Sequence[str], splits: Sequence[str]) -> np.ndarray:
    """``(N,)`` row of the label table of each report; -1 for one of ``test`` that was not labeled."""
    places = {sha256: row for row, sha256 in enumerate(silver.frame["report_sha256"])}
    hashes = [report_sha256(text) for text in texts]
    num_foreign = len(set(places) - set(hashes))
    if num_foreign:
        raise ValueError(
            f"labels must be of reports in the table, got {num_foreign} of {len(places)} that are not there. "
            "Give the table and the text column that were labeled."
        )
    rows = np.array([places.get(sha256, -1) for sha256 in hashes])
    must_have = np.array([bool(text) and split != "test" for text, split in zip(texts, splits, strict=True)])
    num_missing = int(((rows < 0) & must_have).sum())
    if num_missing:
        raise ValueError(
            f"every report of train and validation must have a row of labels, got {num_missing} of "
            f"{len(texts)} without. Label the whole table first."
        )
    return rows


def _texts_and_splits(table: ReportTable, text_column: str) -> tuple[list[str], list[str]]:
    return list(table.frame[text_column]), list(table.frame["split"])


def _choose_columns(names: Sequence[str], findings: str | Path | None) -> dict[str, str]:
    """Column by finding key: all of them in their order, or those of a findings set in its order."""
    if findings is None:
        return {name: name for name in names}
    columns = {}
    for finding in load_findings(findings).findings:
        found = [name for name in names if name in (finding.key, finding.name)]
        if len(found) != 1:
            raise ValueError(
                f"the labels must have one column per finding, got {len(found)} for {finding.key!r}. "
                f"There are {', '.join(names)}."
            )
        columns[finding.key] = found[0]
    return columns


def _split(
    keys: Sequence[str],
    reports: Sequence[str],
    splits: Sequence[str],
    targets: np.ndarray,
    soft: np.ndarray | None = None,
) -> LabeledSplits:
    """Make the splits; ``soft`` are the targets of training where they differ."""
    texts = [normalize_report(text) for text in reports]
    has_text = np.array([bool(text) for text in texts], dtype=bool)
    has_label = (targets != MASKED_TARGET).any(axis=1)
    places = {name: np.array([split == name for split in splits]) for name in ("train", "validation")}
    is_train = places["train"] & has_text & has_label
    if not is_train.any():
        raise ValueError(
            f"the split train must hold a labeled report, got none among {len(texts)} reports. "
            f"Their splits are {', '.join(sorted(set(splits))) or 'none'}."
        )
    train = LabeledReports(_kept(texts, is_train), (targets if soft is None else soft)[is_train])
    seen = set(train.texts)
    is_seen = np.array([text in seen for text in texts])
    is_held_out = places["validation"] & has_text & has_label
    is_new = is_held_out & ~is_seen
    validation = LabeledReports(_kept(texts, is_new), targets[is_new]) if is_new.any() else None
    is_used = places["train"] | places["validation"]
    notes = [
        f"Training on {len(train)} reports, measuring on {int(is_new.sum())}: {', '.join(keys)}.",
        *_count(~is_used, "of the test split are not used"),
        *_count(is_used & ~has_text, "are empty and left out"),
        *_count(is_used & has_text & ~has_label, "have no label and are left out"),
        *_count(is_held_out & is_seen, "of validation have a text of train and are left out"),
        *_one_class(keys, targets[is_train]),
    ]
    return LabeledSplits(tuple(keys), train, validation, tuple(notes))


def _one_class(keys: Sequence[str], targets: np.ndarray) -> list[str]:
    """Notes on findings that are never present, or never absent; refuses those nothing is known about."""
    known = targets != MASKED_TARGET
    unknown = [key for key, is_known in zip(keys, known.any(axis=0), strict=True) if not is_known]
    if unknown:
        raise ValueError(
            f"every finding must have a known label in train, got none for {unknown}. Choose the findings "
            "that have some, or another rule for uncertain and not_mentioned."
        )
    notes = []
    for state, has_state in (("present", targets >= 0.5), ("absent", targets < 0.5)):
        lacking = [k for k, found in zip(keys, (known & has_state).any(axis=0), strict=True) if not found]
        if lacking:
            notes.append(f"Never {state} in train, so it cannot be learned: {', '.join(lacking)}.")
    return notes


def _count(is_left_out: np.ndarray, reason: str) -> list[str]:
    number = int(is_left_out.sum())
    return [f"{number} reports {reason}."] if number else []


def _kept(items: Sequence[str], is_kept: np.ndarray) -> tuple[str, ...]:
    return tuple(item for item, keep in zip(items, is_kept, strict=True) if keep)
