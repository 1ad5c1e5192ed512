"""A label table and a table of volumes -> what is to be published, checked before anything is written.

Axes: N rows, F findings.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from radtower.data.privacy import (
    Analyzer,
    PrivacyReport,
    refuse_identifiers,
    refuse_identifying_ids,
    search_ids,
    search_texts,
)
from radtower.data.splits import SPLITS
from radtower.data.targets import MASKED_TARGET, TargetPolicy
from radtower.hub_cards.labels.volume_rows import VolumeRows, rows_of_labels, rows_of_table
from radtower.labeling.findings import FindingsSet, load_findings
from radtower.labeling.label_table import LabelTable, read_labels

PHANTOM_PREFIX = "phantom-"  # ids of radtower.demo


@dataclass(frozen=True, kw_only=True)
class ReleaseOptions:
    """What the publisher decides.

    Args:
        repo_id: ``owner/name`` on the Hub.
        reports: Manifest or report table with ids, texts and splits. None publishes a row per unique report.
        id_column: Column of VolumeName in ``reports``; None finds it.
        text_column: Column of texts in ``reports``.
        findings: Findings set or YAML file, for names and definitions. None takes the set that the label
            table names.
        policy: The rule that makes 0 and 1 of status values.
        has_text: Publish report texts and evidence quotes.
        num_accepted_matches: Matches of the privacy check in the texts that a person has judged harmless.
        allowed_reason: Why matches of the privacy check, however many, are harmless, in a sentence that is
            published with their counts. None goes by their number.
        are_ids_public: Ids that look like record numbers or dates are public names.
        license_id: License of the data set, as the Hub abbreviates it. Needed for texts.
        source_license: License of the reports, in words.
        language: Of the reports, ISO 639-1.
        is_phantom: The reports are synthetic. Also set by ids that are all of the demo, and by
            ``results.json``.
        analyzers: Search the texts beside the patterns.

    Raises:
        ValueError: If the repository has no owner, the texts are to be published without a license, or the
            license is empty.
    """

    repo_id: str
    reports: Path | None = None
    id_column: str | None = None
    text_column: str = "report"
    findings: str | Path | None = None
    policy: TargetPolicy = field(default_factory=TargetPolicy)
    has_text: bool = False
    num_accepted_matches: int = 0
    allowed_reason: str | None = None
    are_ids_public: bool = False
    license_id: str | None = None
    source_license: str | None = None
    language: str = "en"
    is_phantom: bool = False
    analyzers: tuple[Analyzer, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo_id):
            raise ValueError(f"repo_id must be owner/name, got {self.repo_id!r}. Put your name in front.")
        if self.license_id is not None and not self.license_id.strip():
            raise ValueError(f"license_id must name a license, got {self.license_id!r}. Or leave it out.")
        if self.has_text and self.license_id is None:
            raise ValueError(
                "license_id must be given where texts are published, got None. Name the license under which "
                "the source allows it, or leave the texts out."
            )


@dataclass(frozen=True, kw_only=True)
class LabelRelease:
    """What is to be published; ``refuse_risks`` must have passed before it leaves the machine."""

    options: ReleaseOptions
    labels: LabelTable
    findings: FindingsSet
    volumes: VolumeRows
    id_check: PrivacyReport
    text_check: PrivacyReport | None

    @property
    def splits(self) -> dict[str, int]:
        """Rows by split, in the order train, validation, test; without the empty ones."""
        counts = self.volumes.frame["split"].value_counts()
        return {split: int(counts[split]) for split in SPLITS if split in counts}

    @property
    def is_phantom(self) -> bool:
        """Whether the publisher says that the reports are synthetic, or every id does."""
        ids = self.volumes.frame["VolumeName"]
        return self.options.is_phantom or bool(ids.str.startswith(PHANTOM_PREFIX).all())

    def statuses(self) -> pd.DataFrame:
        """Return ``(N, F)`` status values by key, None where labeling failed."""
        spread = self.labels.status_frame.iloc[self.volumes.frame["label_row"].to_numpy()]
        return spread.reset_index(drop=True)

    def table(self, split: str) -> pa.Table:
        """Return the rows of one split, in CT-RATE's column layout.

        Columns: ``VolumeName``; per finding its name with 0, 1, a stated value or null where masked; then
        ``<key>_status`` and ``<key>_score``, and with texts ``<key>_evidence`` and ``report``.
        """
        is_here = (self.volumes.frame["split"] == split).to_numpy()
        volumes = self.volumes.frame[is_here]
        label_rows = volumes["label_row"].to_numpy()
        statuses = self.statuses()[is_here]
        columns: dict[str, pa.Array] = {"VolumeName": pa.array(volumes["VolumeName"], pa.string())}
        columns |= self._targets(statuses)
        scores = self.labels.score_matrix(self.findings.keys)[label_rows]
        for position, key in enumerate(self.findings.keys):
            columns[f"{key}_status"] = pa.array(_or_none(statuses[key]), pa.string())
            score = scores[:, position]
            columns[f"{key}_score"] = pa.array(score, pa.float64(), mask=np.isnan(score))
        if self.options.has_text:
            evidence = self.labels.evidence_frame.iloc[label_rows]
            for key in self.findings.keys:
                columns[f"{key}_evidence"] = pa.array(_or_none(evidence[key]), pa.string())
            if (self.volumes.frame["report"] != "").any():
                columns["report"] = pa.array(volumes["report"], pa.string())
        return pa.table(columns)

    def _targets(self, statuses: pd.DataFrame) -> dict[str, pa.Array]:
        policy = self.options.policy
        targets = policy.targets_from_status(statuses[list(self.findings.keys)])
        stated = [value for value in (policy.uncertain, policy.not_mentioned) if value is not None]
        kind = pa.int8() if all(value in (0, 1) for value in stated) else pa.float32()
        return {
            finding.name: pa.array(
                targets[:, position].astype(kind.to_pandas_dtype()),
                kind,
                mask=targets[:, position] == MASKED_TARGET,
            )
            for position, finding in enumerate(self.findings.findings)
        }

    def refuse_risks(self) -> None:
        """Refuse what may identify a patient.

        Raises:
            ValueError: If texts or ids hold more than the options accept.
        """
        refuse_identifying_ids(self.id_check, self.options.are_ids_public)
        if self.text_check is not None and self.options.allowed_reason is None:
            refuse_identifiers(self.text_check, self.options.num_accepted_matches)


def prepare_release(labels_path: str | Path, options: ReleaseOptions) -> LabelRelease:
    """Read the tables, join them and search for identifiers; writes nothing.

    Raises:
        ValueError: If a table is not valid, the findings are not those of the label table, a finding is named
            like another column, or no report was labeled.
    """
    labels = read_labels(labels_path)
    findings = _findings_of(labels, options.findings)
    _check_column_names(findings)
    if len(labels.failures) == len(labels):
        raise ValueError(
            f"the label table must have labeled reports, got {len(labels)} that all failed. Label again."
        )
    volumes = (
        rows_of_labels(labels)
        if options.reports is None
        else rows_of_table(
            labels, options.reports, id_column=options.id_column, text_column=options.text_column
        )
    )
    return LabelRelease(
        options=options,
        labels=labels,
        findings=findings,
        volumes=volumes,
        id_check=search_ids(volumes.frame["VolumeName"]),
        text_check=search_texts(_texts_of(labels, volumes), options.analyzers) if options.has_text else None,
    )


def _findings_of(labels: LabelTable, wanted: str | Path | None) -> FindingsSet:
    names = sorted(set(labels.frame["findings_set"]))
    if len(names) > 1:
        raise ValueError(f"a label table must have one findings set, got {names}. Publish them apart.")
    findings = load_findings(names[0].partition("[")[0] if wanted is None else wanted)
    if set(labels.keys) - set(findings.keys):
        raise ValueError(
            f"findings must define those of the label table, got {findings.name!r}, which has no "
            f"{sorted(set(labels.keys) - set(findings.keys))}. Name the set or file that was labeled with."
        )
    return labels.findings_in(findings)  # the card quotes its definitions


def _check_column_names(findings: FindingsSet) -> None:
    generated = [f"{key}_{part}" for key in findings.keys for part in ("status", "score", "evidence")]
    names = ["VolumeName", "report", *findings.names, *generated]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"columns of a label data set must have names of their own, got {repeated} twice. Rename the "
            "finding."
        )


def _texts_of(labels: LabelTable, volumes: VolumeRows) -> Iterator[tuple[str, str]]:
    """Every text that would be published, once: the reports, and quotes that are in none of them."""
    evidence = labels.evidence_frame
    first = volumes.frame.drop_duplicates("label_row")
    for name, row, report in zip(first["VolumeName"], first["label_row"], first["report"], strict=True):
        quotes = [q for q in dict.fromkeys(evidence.iloc[row]) if isinstance(q, str) and q not in report]
        yield name, "\n".join([report, *quotes])


def _or_none(cells: pd.Series) -> list[str | None]:
    return [str(cell) if isinstance(cell, str) else None for cell in cells]
