"""What a linear classifier can read from the vectors of reports: AUROC per label, fitted on train.

Axes: N reports, L labels, E embedding, R resamples.
"""

import warnings
from dataclasses import dataclass, field

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from radtower.data.reports.report_corpus import ReportTable
from radtower.evaluation.metrics import auroc_per_finding, macro_mean, weighted_auroc
from radtower.evaluation.results import Provenance
from radtower.evaluation.text.scorers import EmbeddingScorer
from radtower.evaluation.text.task_scores import Metric, NothingToMeasure, TaskScores

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
            NothingToMeasure: If no label has enough studies with and without it.
        """
        columns = self.columns
        if not columns:
            raise NothingToMeasure(
                f"{self.name}: none of {len(self.test.label_names)} labels has {MIN_TRAIN} studies with and "
                f"without it in train and {MIN_TEST} in the split under test"
            )
        tables = [_with_report(table) for table in (self.train, self.validation, self.test)]
        vectors = [scorer.vectors(table.frame["report"].tolist()) for table in tables]
        scaler = StandardScaler().fit(vectors[0])
        train, validation, test = (scaler.transform(rows) for rows in vectors)
        labels = [table.labels[:, columns] for table in tables]
        fitted = {c: _fit(train, labels[0], c) for c in STRENGTHS}
        choices = {
            c: macro_mean(auroc_per_finding(_scores(models, validation), labels[1])).value
            for c, models in fitted.items()
        }
        best = max(choices, key=lambda c: (np.nan_to_num(choices[c], nan=-1.0), -c))
        scores = _scores(fitted[best], test)

        def weighted(counts: np.ndarray) -> np.ndarray:
            per_label = np.stack(
                [weighted_auroc(scores[:, f], labels[2][:, f], counts) for f in range(len(columns))], axis=1
            )
            is_defined = np.isfinite(per_label)
            total = np.where(is_defined, per_label, 0.0).sum(axis=1)
            macro = np.where(is_defined.any(axis=1), total / np.maximum(is_defined.sum(axis=1), 1), np.nan)
            return np.column_stack([macro, per_label])

        names = [self.test.label_names[column] for column in columns]
        note = f"mean of {len(columns)} of {len(self.test.label_names)} labels; C = {best}"
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
                protocol=f"logistic regression on {len(train)} reports",
            ),
            metrics=(macro, *metrics),
            patient_ids=tables[2].frame["patient_id"].to_numpy(),
            weighted=weighted,
        )


def _with_report(table: ReportTable) -> ReportTable:
    return table.rows((table.frame["report"] != "").to_numpy())


def _fit(vectors: np.ndarray, labels: np.ndarray, strength: float) -> list[LogisticRegression]:
    models = []
    for column in labels.T:
        known = column >= 0
        model = LogisticRegression(C=strength, max_iter=200)
        with warnings.catch_warnings():
            # Weakly regularized fits of separable labels do not converge; validation judges them.
            warnings.simplefilter("ignore", ConvergenceWarning)
            models.append(model.fit(vectors[known], column[known]))
    return models


def _scores(models: list[LogisticRegression], vectors: np.ndarray) -> np.ndarray:
    return np.stack([model.decision_function(vectors) for model in models], axis=1)
