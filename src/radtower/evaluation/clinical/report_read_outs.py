"""Does a retrieved report say the same as the true one? And as much more than answers made without the scan?

Three kinds of answers are measured on the same rows: the reports found, the most common ones of the training
split, and random ones. Beside them the paired differences, found minus either.
Axes: N volumes, F findings, G different reports, T training volumes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from radtower.data.targets import MASKED_TARGET
from radtower.evaluation.clinical.label_answers import LabelAnswers, Pick, answers_of_rows, random_answers
from radtower.evaluation.clinical.label_scores import label_scores, without_macro_precision
from radtower.evaluation.clinical.most_common import most_common_reports
from radtower.evaluation.clinical.report_labels import ReportLabels
from radtower.evaluation.clinical.report_search import FoundReports
from radtower.evaluation.results import MetricResult, Provenance
from radtower.evaluation.retrieval.ranks import RetrievalOptions
from radtower.evaluation.rows import QUERY_COLUMNS
from radtower.evaluation.task_scores import TaskScores

MOST_COMMON = "most common report"
RANDOM = "random report"


@dataclass(frozen=True)
class ReadOuts:
    """Metrics for ``results.json``, what could not be measured and why, and outcomes per query."""

    metrics: tuple[MetricResult, ...]
    not_measured: tuple[str, ...]
    query_rows: pd.DataFrame


class _Answers(NamedTuple):
    """How many answers count, and how they become one."""

    num_answers: int
    pick: Pick

    @property
    def title(self) -> str:
        if self.num_answers == 1:
            return "top 1"
        return f"{self.pick} of top {self.num_answers}"


def measure_read_outs(
    found: FoundReports,
    studies: pd.DataFrame,
    labels: ReportLabels,
    training: ReportLabels | None,
    dataset: str,
    *,
    ks: Sequence[int] = (1, 5),
    options: RetrievalOptions | None = None,
) -> ReadOuts:
    """Measure how the labels of answers agree with those of the true reports; see :func:`label_scores`.

    Of the first answer, of the mean of the first k, and of the best of them, which is chosen by who knows the
    truth: an upper bound. The baselines never see a scan. Their best of k is chosen likewise.

    - ``most common report``: the training report whose labels agree best with all training reports on
      average; as best of k the k reports whose best agrees best. See :func:`most_common_reports`.
    - ``random report``: the average over all orders of the reports searched, exactly.

    Args:
        found: Of N volumes.
        studies: N rows of the manifest.
        labels: Of the N reports.
        training: Labels of the reports of the training split; None if there is none.
        dataset: Name of the data.
        ks: Numbers of answers; 1 is always measured, and those above the number of reports are named.
        options: Resampling of the patients, None for the usual; the reports searched stay as they are.

    Raises:
        ValueError: If no volume has a labeled report, or tables do not fit.
    """
    if not len(studies) == len(labels.values) == len(found.rows):
        raise ValueError(
            f"studies, labels and found must be of the same volumes, got {len(studies)}, "
            f"{len(labels.values)} and {len(found.rows)} rows."
        )
    if not labels.is_labeled.any():
        raise ValueError(
            f"labels must be there for the reports, got none for {len(studies)} volumes. Label these reports "
            "first, and give that table."
        )
    possible = [k for k in dict.fromkeys((1, *sorted(ks))) if k <= len(found.gallery)]
    options = options or RetrievalOptions()
    resampling = options.num_resamples, options.seed
    fixed, not_measured = _most_common(labels, training, max(possible))
    measure = _Measure(found, studies, labels, fixed, dataset)
    metrics: list[MetricResult] = []
    for answers in (_Answers(k, pick) for k in possible for pick in _picks(k)):
        mine = measure.found(answers)
        of_each = labels.keys if answers.num_answers == 1 else ()
        metrics += measure.scores(mine, answers, of_each).results(*resampling)
        overall = without_macro_precision(measure.scores(mine, answers))
        for name, theirs in measure.baselines(answers).items():
            baseline = measure.scores(theirs, answers)
            metrics += as_baseline(baseline, name).results(*resampling)
            metrics += overall.minus(without_macro_precision(baseline), name, *resampling)
    too_many = [k for k in ks if k not in possible]
    if too_many:
        not_measured.append(
            f"labels of the first {', '.join(map(str, too_many))} reports: only {len(found.gallery)} differ"
        )
    return ReadOuts(tuple(metrics), tuple(not_measured), measure.query_rows())


def _picks(num_answers: int) -> tuple[Pick, ...]:
    return ("mean", "best") if num_answers > 1 else ("mean",)


def _most_common(
    labels: ReportLabels, training: ReportLabels | None, num_reports: int
) -> tuple[ReportLabels | None, list[str]]:
    """The most common training reports, the first one first; or why there are none."""
    reason = None
    if training is None:
        reason = "the manifest has no training split"
    elif training.keys != labels.keys:
        raise ValueError(
            f"training and labels must have the same findings, got {len(training.keys)} and "
            f"{len(labels.keys)}. Take both from one table."
        )
    elif not training.is_labeled.any():
        reason = "no report of the training split is labeled"
    else:
        return training.at(most_common_reports(training.values, num_reports)), []
    return None, [f"labels of the {MOST_COMMON}: {reason}"]


def as_baseline(scores: TaskScores, name: str) -> TaskScores:
    """Under names of their own, so that nobody takes them for numbers of the model."""
    protocol = f"{scores.provenance.protocol}; {name}"
    return replace(
        scores,
        provenance=scores.provenance.model_copy(update={"protocol": protocol}),
        metrics=tuple(replace(metric, name=f"{metric.name}_baseline") for metric in scores.metrics),
    )


@dataclass(frozen=True)
class _Measure:
    """``most_common``: K training reports, or None."""

    reports: FoundReports
    studies: pd.DataFrame
    labels: ReportLabels
    most_common: ReportLabels | None
    dataset: str

    def found(self, answers: _Answers) -> LabelAnswers:
        rows = self.reports.rows[:, : answers.num_answers]
        return answers_of_rows(self.labels.values, self._gallery, rows, answers.pick)

    def baselines(self, answers: _Answers) -> dict[str, LabelAnswers]:
        truth, num_answers = self.labels.values, answers.num_answers
        given = {RANDOM: random_answers(truth, self._gallery, num_answers, answers.pick)}
        if self.most_common is not None:
            # The mean over several would be weaker than the first one alone.
            fixed = self.most_common.values[: num_answers if answers.pick == "best" else 1]
            rows = np.tile(np.arange(len(fixed)), (len(truth), 1))
            given[MOST_COMMON] = answers_of_rows(truth, fixed, rows, answers.pick)
        return given

    def scores(self, given: LabelAnswers, answers: _Answers, findings: Sequence[str] = ()) -> TaskScores:
        num_masked = int((self._gallery == MASKED_TARGET).sum())
        num_unlabeled = int((~self.labels.is_labeled).sum())
        notes = [f"{len(self._gallery)} different reports searched; queries resampled, gallery fixed"]
        if num_masked:
            notes.append(
                f"{num_masked} of their {self._gallery.size} labels are masked: not stated as present"
            )
        if num_unlabeled:
            notes.append(f"{num_unlabeled} volumes without labels of their report left out")
        patients = self.studies["patient_id"].to_numpy()
        return label_scores(given, patients, self._provenance(answers), findings, "; ".join(notes))

    def query_rows(self) -> pd.DataFrame:
        """Jaccard and exact row of the first report found, by query, with the columns of ``QueryRows``."""
        first = _Answers(1, "mean")
        given, where = self.found(first), self._provenance(first)
        tables = [
            pd.DataFrame(
                {
                    **{name: getattr(where, name) for name in ("dataset", "class_set", "label_source")},
                    "protocol": where.protocol,
                    "direction": "image_to_report",
                    "query_id": self.studies["volume_id"].to_numpy(),
                    "patient_id": self.studies["patient_id"].to_numpy(),
                    "metric": metric,
                    "value": values,
                }
            )
            for metric, values in (("label_jaccard", given.jaccard), ("label_exact_row", given.exact))
        ]
        known = pd.concat(tables, ignore_index=True).dropna(subset=["value"])
        return known[list(QUERY_COLUMNS)].reset_index(drop=True)

    @property
    def _gallery(self) -> np.ndarray:
        values: np.ndarray = self.labels.values[self.reports.gallery]
        return values

    def _provenance(self, answers: _Answers) -> Provenance:
        return Provenance(
            dataset=self.dataset,
            class_set=self.labels.class_set,
            label_source=self.labels.source,
            protocol=answers.title,
        )
