"""What the report of each volume says about the findings, as 0, 1 or unknown, and who says so.

Axes: N volumes, F findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from radtower.data.manifest import Manifest
from radtower.data.model_names import without_machine_path
from radtower.data.targets import MASKED_TARGET, TargetPolicy
from radtower.labeling.findings import load_findings
from radtower.labeling.label_table import LabelTable, read_labels
from radtower.processing.report_text import report_sha256


@dataclass(frozen=True)
class ReportTargets:
    """Labels of reports, by volume.

    Args:
        keys: Findings, in column order.
        values: ``(N, F)`` float32: 0, 1, or -100 where unknown or masked.
        is_labeled: ``(N,)`` bool; False where nobody labeled the report, or labeling it failed.
        source: Who labeled, and what uncertain and not mentioned became.
        class_set: Name of the findings set.
    """

    keys: tuple[str, ...]
    values: np.ndarray
    is_labeled: np.ndarray
    source: str
    class_set: str

    def __post_init__(self) -> None:
        invalid = np.setdiff1d(self.values, (0.0, 1.0, MASKED_TARGET))
        if len(invalid):
            raise ValueError(
                f"labels of reports must be 0, 1 or -100, got {invalid[:5].tolist()}. Make uncertain and not "
                "mentioned 0, 1 or masked."
            )

    def at(self, rows: Sequence[int] | np.ndarray) -> "ReportTargets":
        """Return those of some rows, in that order."""
        return ReportTargets(self.keys, self.values[rows], self.is_labeled[rows], self.source, self.class_set)


def targets_from_labels(
    reports: Sequence[str], labels: str | Path, policy: TargetPolicy | None = None
) -> ReportTargets:
    """Look up the labels of reports in a label table, by their hash; reports may repeat.

    A report that is not in the table is not labeled; the caller says which must be.

    Args:
        reports: N texts.
        labels: ``labels.parquet`` of our labelers.
        policy: What uncertain and not mentioned become; None is the default rule.

    Raises:
        ValueError: If the policy has targets between 0 and 1.
    """
    policy = policy or TargetPolicy()
    table = read_labels(labels)
    position = {sha: row for row, sha in enumerate(table.frame["report_sha256"])}
    rows = np.array([position.get(report_sha256(report), -1) for report in reports], dtype=np.int64)
    values = np.full((len(reports), len(table.keys)), MASKED_TARGET, dtype=np.float32)
    is_found = rows >= 0
    has_answer = table.frame["error"].isna().to_numpy()
    values[is_found] = policy.targets_from_status(table.status_frame)[rows[is_found]]
    is_labeled = is_found & has_answer[rows]
    return ReportTargets(
        table.keys, values, is_labeled, f"{_labeler_of(table)}; {_rule(policy)}", _class_set_of(table)
    )


def targets_from_manifest(
    manifest: Manifest, findings: str | Path, policy: TargetPolicy | None = None
) -> ReportTargets:
    """Return the labels that a manifest has in its per-finding columns; see :meth:`Manifest.truth`.

    A row without any known label is not labeled.
    """
    policy = policy or TargetPolicy()
    columns = load_findings(findings)
    values = manifest.truth(columns, policy)
    is_labeled = (values != MASKED_TARGET).any(axis=1)
    return ReportTargets(
        columns.keys, values, is_labeled, f"columns of the manifest; {_rule(policy)}", columns.name
    )


def _labeler_of(table: LabelTable) -> str:
    frame = table.frame
    models = sorted({without_machine_path(str(name)) for name in frame["model_id"]})
    prompts = sorted({str(version) for version in frame["prompt_version"].dropna()})
    parts = [
        f"labels of the reports by {', '.join(sorted(set(frame['labeler'])))} {', '.join(models)}",
        f"prompt {', '.join(prompts)}" if prompts else "",
        f"generation {table.generation_hash}" if table.generation_hash else "",
    ]
    return ", ".join(filter(None, parts))


def _class_set_of(table: LabelTable) -> str:
    return ", ".join(sorted(set(table.frame["findings_set"])))


def _rule(policy: TargetPolicy) -> str:
    said = {None: "masked", 0.0: "0", 1.0: "1"}
    states = (("uncertain", policy.uncertain), ("not mentioned", policy.not_mentioned))
    return ", ".join(f"{name} {said.get(value, value)}" for name, value in states)
