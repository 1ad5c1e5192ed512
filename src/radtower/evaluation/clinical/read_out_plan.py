"""Read-outs of retrieved reports: what is checked before the scans are read, and measured after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from radtower.data.finding_truth import FindingTruth
from radtower.data.manifest import Manifest
from radtower.evaluation.clinical.most_common import most_common_reports
from radtower.evaluation.clinical.report_labels import ReportLabels, report_labels
from radtower.evaluation.clinical.report_read_outs import ReadOuts, measure_read_outs
from radtower.evaluation.clinical.report_search import find_reports
from radtower.evaluation.clinical.text_read_outs import TextScoring, measure_text_read_outs
from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs
from radtower.evaluation.retrieval.ranks import RetrievalOptions

_TRAINING = "train"  # where the most common report is chosen


@dataclass(frozen=True, kw_only=True)
class ReadOutPlan:
    """What is known before the scans are read.

    Args:
        rows: Row of the labels, by volume id.
        labels: Of the reports of all volumes.
        training: Volumes of the training split that have a report.
        scoring: How texts are compared; None leaves texts out.
    """

    rows: dict[str, int]
    labels: ReportLabels
    training: pd.DataFrame
    scoring: TextScoring | None = None

    def measure(
        self,
        pairs: EmbeddedPairs,
        dataset: str,
        ks: Sequence[int] = (1, 5),
        options: RetrievalOptions | None = None,
    ) -> ReadOuts:
        """Search the reports, and read out the labels and the texts of what is found.

        Args:
            pairs: Of volumes that were planned for.
            dataset: Name of the data.
            ks: Numbers of reports looked at; see :func:`measure_read_outs`.
            options: Resampling, None for the usual.
        """
        found = find_reports(pairs, ks)
        labels, training = self._of(pairs.studies), self._of(self.training) if len(self.training) else None
        read_outs = measure_read_outs(found, pairs.studies, labels, training, dataset, ks=ks, options=options)
        if self.scoring is None:
            return read_outs
        texts = measure_text_read_outs(
            found, pairs.studies, self.scoring, self._most_common(training), dataset, options
        )
        return replace(read_outs, metrics=(*read_outs.metrics, *texts))

    def _of(self, studies: pd.DataFrame) -> ReportLabels:
        return self.labels.at([self.rows[volume_id] for volume_id in studies["volume_id"]])

    def _most_common(self, training: ReportLabels | None) -> str | None:
        """The training report whose labels agree best with all, as for the labels."""
        if training is None or not training.is_labeled.any():
            return None
        return str(self.training["report"].iloc[int(most_common_reports(training.values)[0])])


def plan_read_outs(
    manifest: Manifest,
    split: str,
    read_truth: Callable[[Manifest], FindingTruth],
    findings_name: str,
    scoring: TextScoring | None = None,
) -> ReadOutPlan:
    """Read the labels of the split that asks, and of the training split.

    Args:
        manifest: All splits.
        split: The one that asks.
        read_truth: Volumes -> their labels.
        findings_name: Name of the findings.
        scoring: How texts are compared; None leaves texts out.

    Raises:
        ValueError: If no report of the split is labeled, or labels cannot be read.
    """
    frame = manifest.frame
    has_report = frame["report"].str.strip() != ""
    needed = frame[has_report & frame["split"].isin({split, _TRAINING})].reset_index(drop=True)
    labels = report_labels(read_truth(Manifest(needed)), findings_name)
    is_asking = (needed["split"] == split).to_numpy()
    if not (labels.is_labeled & is_asking).any():
        raise ValueError(
            f"labels must be there for reports of the {split} split, got none for {int(np.sum(is_asking))} "
            "volumes. Label these reports first, and give that table."
        )
    rows = dict(zip(needed["volume_id"], range(len(needed)), strict=True))
    return ReadOutPlan(
        rows=rows, labels=labels, training=needed[needed["split"] == _TRAINING], scoring=scoring
    )
