"""What a linear classifier can read from the vectors of reports: AUROC per label, fitted on train.

Axes: N reports, L labels, E embedding, R resamples.
"""

from dataclasses import dataclass, field

import numpy as np

from radtower.data.reports.report_corpus import ReportTable
from radtower.evaluation.metrics import counts_by_row, mean_over_findings
from radtower.evaluation.ranked_scores import RankedScores
from radtower.evaluation.read_outs.logistic import fit_probe
from radtower.evaluation.results import Provenance
from radtower.evaluation.task_scores import Metric, NothingToMeasure, TaskScores
from radtower.evaluation.text.scorers import EmbeddingScorer

MIN_TRAIN, MIN_TEST = 10, 3  # studies with a finding, and without it
STRENGTHS = (0.001, 0.01, 0.1)  # inverse regularization, chosen on the validation split


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression per label on standardized vectors of whole reports.

    The strength of its regularization, one for all labels, is the one with the best macro AUROC on
    validation. Labels with fewer than 10 studies with or without them in train, or 3 in the split under test,
    are left out.

    Args:
        train: Studies to fit on.
        validation: Studies to choose the strength on.
        test: Studies to measure on.
        dataset: Name of the data.
        class_set: Name of the labels.
        label_source: Who gave them.
    """

    train: ReportTable
    validation: ReportTable
    test: ReportTable
    dataset: str
    class_set: str
    label_source: str
    name: str = field(default="linear probe", init=False)

    @property
    def columns(self) -> list[int]:
        """Labels that can be measured."""
        train, test = (
            np.minimum((table.labels == 1).sum(axis=0), (table.labels == 0).sum(axis=0))
            for table in (_with_report(self.train), _with_report(self.test))
        )
        return [int(column) for column in np.flatnonzero((train >= MIN_TRAIN) & (test >= MIN_TEST))]

    def score(self, scorer: EmbeddingScorer) -> TaskScores:
        """Fit on train, choose on validation, measure.

        Raises:
            NothingToMeasure: If no label has enough studies with and without it, or none to choose on.
        """
        columns = self.columns
        if not columns:
            raise NothingToMeasure(
                f"{self.name}: none of {len(self.test.label_names)} labels has {MIN_TRAIN} studies with and "
                f"without it in train and {MIN_TEST} in the split under test"
            )
        tables = [_with_report(table) for table in (self.train, self.validation, self.test)]
        vectors = [scorer.vectors(table.frame["report"].tolist()) for table in tables]
        labels = [table.labels[:, columns] for table in tables]
        if not ((labels[1] == 1).any(axis=0) & (labels[1] == 0).any(axis=0)).any():
            raise NothingToMeasure(
                f"{self.name}: no label has both classes in validation, to choose its strength on"
            )
        probe = fit_probe((vectors[0], labels[0]), (vectors[1], labels[1]), STRENGTHS)
        scores = probe.scores(vectors[2])
        ranked = [RankedScores(scores[:, f], labels[2][:, f]) for f in range(len(columns))]

        def weighted(counts: np.ndarray) -> np.ndarray:
            by_row = counts_by_row(counts)
            per_label = np.stack([label.weighed(by_row).auroc() for label in ranked], axis=1)
            return np.column_stack([mean_over_findings(per_label), per_label])

        names = [self.test.label_names[column] for column in columns]
        note = f"mean of {len(columns)} of {len(self.test.label_names)} labels; C = {probe.strength}"
        macro = Metric(name="probe_macro_auroc", n=len(scores), note=note)
        metrics = [
            Metric(
                name="probe_auroc",
                n=int((labels[2][:, f] >= 0).sum()),
                n_positive=int((labels[2][:, f] == 1).sum()),
                finding=name,
            )
            for f, name in enumerate(names)
        ]
        return TaskScores(
            task=self.name,
            provenance=Provenance(
                dataset=self.dataset,
                class_set=self.class_set,
                label_source=self.label_source,
                protocol=f"logistic regression on {len(vectors[0])} reports",
            ),
            metrics=(macro, *metrics),
            patient_ids=tables[2].frame["patient_id"].to_numpy(),
            weighted=weighted,
        )


def _with_report(table: ReportTable) -> ReportTable:
    return table.rows((table.frame["report"] != "").to_numpy())
