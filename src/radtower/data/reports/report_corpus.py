"""The report table: one row per study with its texts, its split and what is known to be in it; no images.

Axes: N studies, L labels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from radtower.data.csv_table import read_csv_table
from radtower.data.manifest import identifier_hash
from radtower.data.splits import Split, check_splits
from radtower.data.targets import MASKED_TARGET, Status, TargetPolicy
from radtower.processing.report_text import canonical_text, join_sections, normalize_report, report_sha256

SECTIONS = ("findings", "impression")
TEXT_COLUMNS = (*SECTIONS, "report")
COLUMNS = ("study_id", "patient_id", "split", "source", *TEXT_COLUMNS)
TRAIN_SHARE, VALIDATION_SHARE = 0.7, 0.1  # the rest is test
# What a manifest may hold besides; never labels, whatever their values.
_NO_LABELS = {
    *COLUMNS,
    "volume_id",
    "image_path",
    "series_uid",
    "rescale_slope",
    "rescale_intercept",
    "spacing_z_mm",
    "spacing_y_mm",
    "spacing_x_mm",
}


@dataclass(frozen=True)
class ReportTable:
    """Studies in file order.

    Attributes:
        frame: The columns ``COLUMNS``, all strings, texts normalized and ``""`` where there is none.
        labels: ``(N, L)`` float32, 0, 1, what a policy makes of a status, or -100 where unknown; L is 0 where
            the file has no labels.
        label_names: L names.
    """

    frame: pd.DataFrame
    labels: np.ndarray
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frame)

    def rows(self, is_kept: np.ndarray) -> "ReportTable":
        """Return the studies where ``(N,)`` is true."""
        return ReportTable(self.frame[is_kept].reset_index(drop=True), self.labels[is_kept], self.label_names)

    def split(self, name: Split) -> "ReportTable":
        """Return the studies of one split.

        Raises:
            ValueError: If the split has no study.
        """
        kept = self.rows((self.frame["split"] == name).to_numpy())
        if not len(kept):
            found = sorted(self.frame["split"].unique())
            raise ValueError(f"split must be one of {', '.join(found)} in this table, got {name!r}.")
        return kept

    def limited(self, num: int) -> "ReportTable":
        """Return at most ``num`` studies of each split: those with the smallest hashes of their ids."""
        hashes = self.frame["study_id"].map(lambda name: hashlib.sha256(name.encode()).hexdigest())
        places = hashes.groupby(self.frame["split"]).rank(method="first")
        return self.rows((places <= num).to_numpy())

    def with_both_sections(self) -> "ReportTable":
        """Return the studies that have findings and an impression: those retrieval can use."""
        return self.rows((self.frame[list(SECTIONS)] != "").all(axis=1).to_numpy())


def assign_splits(
    patient_ids: Sequence[str], reports: Sequence[str], findings: Sequence[str] | None = None
) -> list[Split]:
    """Return train (70 %), validation (10 %) or test (20 %) per study; always the same for the same studies.

    Studies of one patient, and studies whose reports or findings are the same but for case, numbering and
    punctuation, are in one group and so in one split: else a model is tested on texts that it was trained on.
    The place of a group is the smallest SHA-256 of its reports, so neither row order nor ids nor a seed
    decide it; the shares hold on average. A study without a report is placed by its patient.

    Args:
        patient_ids: Patient of each study.
        reports: Text of each study.
        findings: Findings of each study, "" where there are none. None goes by the reports alone.

    Raises:
        ValueError: If the lists differ in length.
    """
    findings = [""] * len(reports) if findings is None else findings
    sizes = [len(patient_ids), len(reports), len(findings)]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"patient_ids, reports and findings must pair up, got {sizes}. Give one of each per study."
        )
    hashes = [
        report_sha256(report) if normalize_report(report) else hashlib.sha256(patient.encode()).hexdigest()
        for patient, report in zip(patient_ids, reports, strict=True)
    ]
    parents: dict[str, str] = {}

    def root(node: str) -> str:
        while parents.setdefault(node, node) != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for digest, patient, *texts in zip(hashes, patient_ids, reports, findings, strict=True):
        forms = [f"text {form}" for form in map(canonical_text, texts) if form]
        for other in (f"patient {patient}", *forms):
            # The smaller becomes the root, so that the root does not depend on the order; digits and a to f
            # come before the other names, so that it is the hash of a report.
            first, second = sorted((root(digest), root(other)))
            parents[second] = first
    return [_split_at(root(digest)) for digest in hashes]


def write_report_table(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a report table as CSV or parquet, its folder included.

    Raises:
        ValueError: If ``path`` ends in neither.
    """
    path = Path(path)
    _check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)


def read_report_table(path: str | Path, policy: TargetPolicy | None = None) -> ReportTable:
    """Read a report table, or a manifest with reports, and check it.

    Needs ``study_id``, ``patient_id``, ``split`` and ``report`` (or ``findings`` and ``impression``, joined).
    ``source`` is the name of the file where it is missing. Labels are all further columns whose cells are 0,
    1, -100 or empty, or status values; others are ignored. Volumes of a study count once.

    Args:
        path: CSV or parquet.
        policy: Rule for status values. None is the default rule.

    Raises:
        ValueError: If a column is missing, a row has too many or too few fields, an id is empty, a split is
            unknown, a patient is in two splits, the rows of a study differ in text, patient, split or labels,
            or a label is -1.
    """
    path = Path(path)
    _check_suffix(path)
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else read_csv_table(path)
    missing = [name for name in ("study_id", "patient_id", "split") if name not in frame]
    if not set(TEXT_COLUMNS) & set(frame):
        missing.append("report (or findings, impression)")
    if missing:
        raise ValueError(
            f"a report table must have study_id, patient_id, split and report, got no {missing} in "
            f"{path.name}. Make one with `radtower reports`, or rename the columns."
        )
    texts = _texts_of(frame, path.stem)
    _check_rows(texts)
    is_first = ~texts["study_id"].duplicated().to_numpy()
    names, labels = _labels_of(frame, policy or TargetPolicy())
    _check_labels(texts["study_id"], names, labels)
    labels = labels[is_first]
    return ReportTable(texts[is_first].reset_index(drop=True), labels, names)


def _split_at(digest: str) -> Split:
    # Hashed again: the smallest hash of a large group is not uniform.
    place = int.from_bytes(hashlib.sha256(digest.encode()).digest()[:6]) / 2**48
    if place < TRAIN_SHARE:
        return "train"
    return "validation" if place < TRAIN_SHARE + VALIDATION_SHARE else "test"


def _texts_of(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    empty = pd.Series("", index=frame.index)

    def column(name: str) -> pd.Series:
        return frame.get(name, empty).astype(object).where(lambda cells: cells.notna(), "").astype(str)

    ids = {name: column(name).str.strip() for name in ("study_id", "patient_id", "split", "source")}
    texts = {name: column(name).map(normalize_report) for name in TEXT_COLUMNS}
    if "report" not in frame:
        joined = [join_sections(f, i) for f, i in zip(texts["findings"], texts["impression"], strict=True)]
        texts["report"] = pd.Series(joined, index=frame.index, dtype=object)
    table = pd.DataFrame({**ids, **texts})[list(COLUMNS)]
    return table.assign(source=table["source"].mask(table["source"] == "", source))


def _check_rows(table: pd.DataFrame) -> None:
    for name in ("study_id", "patient_id"):
        num_empty = int((table[name] == "").sum())
        if num_empty:
            raise ValueError(f"{name} must be filled in every row, got {num_empty} empty. Fill it.")
    check_splits(table["split"])
    same = [("patient_id", "split"), *(("study_id", name) for name in ("patient_id", "report", *SECTIONS))]
    for key, name in same:
        num_values = table.groupby(key)[name].nunique()
        differing = num_values[num_values > 1]
        if len(differing):
            raise ValueError(
                f"every {key} must have one {name}, got {len(differing)} with several, first "
                f"{identifier_hash(str(differing.index[0]))}. Repair the table, or use other ids."
            )


def _check_labels(study_ids: pd.Series, names: tuple[str, ...], labels: np.ndarray) -> None:
    num_values = pd.DataFrame(labels, columns=list(names)).groupby(study_ids.to_numpy()).nunique()
    differing = [name for name in names if (num_values[name] > 1).any()]
    if differing:
        raise ValueError(
            f"the rows of a study must agree in their labels, got studies that differ in {differing}. "
            "Repair the table."
        )


def label_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a manifest or report table that are labels, as 0, 1 and -100.

    Status values follow the default rule.

    Args:
        frame: As it was read; see :func:`read_report_table` for what counts as a label.

    Raises:
        ValueError: If a label is -1.
    """
    names, labels = _labels_of(frame, TargetPolicy())
    return pd.DataFrame(labels, columns=list(names), index=frame.index)


def _labels_of(frame: pd.DataFrame, policy: TargetPolicy) -> tuple[tuple[str, ...], np.ndarray]:
    columns = {name: _as_label(frame[name], policy) for name in frame if name not in _NO_LABELS}
    kept = {str(name): values for name, values in columns.items() if values is not None}
    matrix = np.stack(list(kept.values()), axis=1) if kept else np.empty((len(frame), 0))
    return tuple(kept), matrix.astype(np.float32)


def _as_label(cells: pd.Series, policy: TargetPolicy) -> np.ndarray | None:
    """Values of a label column; None for any other column, as one that is empty throughout."""
    if cells.isna().all():
        return None
    if cells.dropna().isin([str(status) for status in Status]).all():
        return policy.targets_from_status(cells.to_frame())[:, 0]
    numbers = pd.to_numeric(cells, errors="coerce")
    if (numbers == -1).any() and numbers[cells.notna()].isin((-1, 0, 1, MASKED_TARGET)).all():
        raise ValueError(
            f"labels must be 0, 1, {MASKED_TARGET} or empty, got -1 in {int((numbers == -1).sum())} rows of "
            f"{cells.name!r}. Write what it stands for: 'uncertain', or {MASKED_TARGET} for unknown."
        )
    if (numbers.isna() & cells.notna()).any() or not numbers.dropna().isin((0, 1, MASKED_TARGET)).all():
        return None
    return numbers.fillna(MASKED_TARGET).to_numpy()


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"path must end in .csv or .parquet, got {path.suffix!r}. Convert the table.")
