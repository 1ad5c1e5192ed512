"""Agreement between the labels of answers and of true reports: precision, recall, F1, exact row, Jaccard.

Axes: Q queries, F findings, R resamples.
"""

from collections.abc import Callable, Sequence

import numpy as np

from radtower.data.targets import MASKED_TARGET
from radtower.evaluation.clinical.label_answers import LabelAnswers
from radtower.evaluation.results import Provenance
from radtower.evaluation.task_scores import Metric, TaskScores

_DECISIONS = ("precision", "recall", "f1")
_UNDEFINED = {
    "precision": "no answer names it",
    "recall": "no true report has it",
    "f1": "no answer names it and no true report has it",
}


def label_scores(
    answers: LabelAnswers,
    patient_ids: Sequence[object] | np.ndarray,
    provenance: Provenance,
    findings: Sequence[str] = (),
    note: str | None = None,
) -> TaskScores:
    """Return the agreement of all findings together and, where they are named, of each.

    A finding counts as positive where a report states it as present. ``macro_label_*`` is the mean over the
    findings where it is defined, ``micro_label_*`` pools all cells. Where answers are a mean or a draw of
    several reports, counts are expected counts. Cells that are masked in the true report are left out.

    Args:
        answers: Of Q queries.
        patient_ids: ``(Q,)``.
        provenance: Data set, class set and label source; ``protocol`` says which answers.
        findings: F names, for numbers per finding; none for the numbers of all together only.
        note: Goes with every number.

    Raises:
        ValueError: If there is another number of names than findings, or of patients than queries.
    """
    num_queries, num_findings = answers.truth.shape
    if len(findings) not in (0, num_findings) or len(patient_ids) != num_queries:
        raise ValueError(
            f"findings and patient_ids must be {num_findings} (or none) and {num_queries}, got "
            f"{len(findings)} and {len(patient_ids)}."
        )
    return TaskScores(
        task="labels of retrieved reports",
        provenance=provenance,
        metrics=_metrics(answers, findings, note),
        patient_ids=np.asarray(patient_ids),
        weighted=_weighted(answers, has_findings=bool(len(findings))),
        direction="image_to_report",
    )


def without_macro_precision(scores: TaskScores) -> TaskScores:
    """Leave out what two kinds of answers cannot be compared by.

    Precision is undefined for a finding that no answer names, so that macro precision is a mean over other
    findings for each: fixed answers name few.
    """
    kept = [column for column, metric in enumerate(scores.metrics) if metric.name != "macro_label_precision"]

    def weighted(counts: np.ndarray) -> np.ndarray:
        return scores.weighted(counts)[:, kept]

    return TaskScores(
        task=scores.task,
        provenance=scores.provenance,
        metrics=tuple(scores.metrics[column] for column in kept),
        patient_ids=scores.patient_ids,
        weighted=weighted,
        direction=scores.direction,
    )


def _metrics(answers: LabelAnswers, findings: Sequence[str], note: str | None) -> tuple[Metric, ...]:
    is_known = answers.truth != MASKED_TARGET
    has = answers.truth == 1
    rows = int(is_known.any(axis=1).sum())
    metrics = [
        Metric(
            name=f"{mean}_label_{name}", n=rows, note=note, undefined_because=f"{_UNDEFINED[name]}, for all"
        )
        for mean in ("macro", "micro")
        for name in _DECISIONS
    ]
    for name, values in (("label_exact_row", answers.exact), ("label_jaccard", answers.jaccard)):
        count = int((~np.isnan(values)).sum())
        metrics.append(Metric(name=name, n=count, note=note, undefined_because="no true report is labeled"))
    for name in _DECISIONS if findings else ():
        for column, finding in enumerate(findings):
            sizes = {"n": int(is_known[:, column].sum()), "n_positive": int(has[:, column].sum())}
            metrics.append(
                Metric(
                    name=f"label_{name}",
                    finding=finding,
                    note=note,
                    undefined_because=_UNDEFINED[name],
                    **sizes,
                )
            )
    return tuple(metrics)


def _weighted(answers: LabelAnswers, *, has_findings: bool) -> Callable[[np.ndarray], np.ndarray]:
    is_known = answers.truth != MASKED_TARGET
    has = (answers.truth == 1).astype(np.float64)
    named = np.where(is_known, answers.named, 0.0)
    both = has * named
    rows = np.stack([answers.exact, answers.jaccard], axis=1)
    is_row = ~np.isnan(rows)
    filled = np.where(is_row, rows, 0.0)

    def weighted(counts: np.ndarray) -> np.ndarray:
        """Counts ``(R, Q)`` -> ``(R, 8)`` or ``(R, 8 + 3 F)``, in the order of ``_metrics``."""
        weights = counts.astype(np.float64)
        sums = [weights @ table for table in (both, named, has)]  # three (R, F)
        per_finding = _decisions(*sums)
        micro = _decisions(*(total.sum(axis=1, keepdims=True) for total in sums))
        columns = [_mean_of_defined(values) for values in per_finding]
        columns += [values[:, 0] for values in micro]
        columns += list(_ratio(weights @ filled, weights @ is_row).T)
        means = np.stack(columns, axis=1)
        return np.concatenate([means, *per_finding], axis=1) if has_findings else means

    return weighted


def _decisions(both: np.ndarray, named: np.ndarray, has: np.ndarray) -> list[np.ndarray]:
    return [_ratio(both, named), _ratio(both, has), _ratio(2 * both, named + has)]


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    is_defined = ~np.isnan(values)
    return _ratio(np.where(is_defined, values, 0.0).sum(axis=1), is_defined.sum(axis=1))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    is_defined = denominator > 0
    return np.where(is_defined, numerator / np.where(is_defined, denominator, 1), np.nan)
