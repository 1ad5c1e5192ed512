"""Two runs -> every metric that both have, with its paired difference where the rows allow it."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pandas as pd

from radtower.evaluation.comparison.comparison import (
    ComparedModel,
    ComparedValue,
    Comparison,
    MetricDifference,
)
from radtower.evaluation.comparison.paired_rows import NotPaired, pair_queries, pair_scores
from radtower.evaluation.comparison.paired_values import (
    Key,
    PairedValue,
    Resampling,
    query_differences,
    score_differences,
)
from radtower.evaluation.comparison.runs import WHERE, Run, rows_of
from radtower.evaluation.decisions.delong import AurocDifference, delong_test, holm
from radtower.evaluation.decisions.finding_scores import FindingScores
from radtower.evaluation.results import MetricResult, Provenance

NO_ROWS = "no paired interval: rows are not there"
_AGREEMENT = 1e-6  # of a number in results.json with the one that its rows give
_Pair = tuple[MetricResult, MetricResult]


def compare_runs(first: Run, second: Run, resampling: Resampling) -> Comparison:
    """Compare two models on what both were measured on: dataset, class set, labels, protocol, thresholds.

    Args:
        first: The one that differences are taken from.
        second: The other; a difference is second minus first.
        resampling: Of the patients.

    Raises:
        ValueError: If they have no metric in common.
    """
    metrics = first.metrics(), second.metrics()
    shared = [(item, metrics[1][key]) for key, item in metrics[0].items() if key in metrics[1]]
    alone = [[item for key, item in m.items() if key not in o] for m, o in (metrics, metrics[::-1])]
    if not shared:
        raise ValueError(
            f"two results must share a metric to be compared, got none: {_what_differs(*alone)}. "
            "Evaluate both on the same data by the same protocol."
        )

    def place(pair: _Pair) -> tuple[str, ...]:
        return tuple(str(getattr(pair[0], name)) for name in (*WHERE, "direction"))

    differences: list[MetricDifference] = []
    order = {key: number for number, key in enumerate(dict.fromkeys(map(place, shared)))}
    for _, group in groupby(sorted(shared, key=lambda pair: order[place(pair)]), place):
        differences += _compared(list(group), first, second, resampling)
    return Comparison(
        first=ComparedModel.of(first.results),
        second=ComparedModel.of(second.results),
        remarks=tuple(_remarks(first, second, alone, shared)),
        differences=tuple(differences),
    )


def _compared(
    pairs: Sequence[_Pair], first: Run, second: Run, resampling: Resampling
) -> list[MetricDifference]:
    """Compare what was measured on the same data, by the same protocol, in the same direction."""
    reason: str | None = None
    values: dict[Key, PairedValue] = {}
    tests: dict[str, AurocDifference] = {}
    try:
        if pairs[0][0].direction is None:
            samples = pair_scores(*_frames(first.scores, second.scores, pairs[0][0]))
            metrics = [a for a, _ in pairs]
            thresholds = [_of_the_same_scores(run.results.metrics, pairs[0][0]) for run in (first, second)]
            values = score_differences(samples, metrics, (thresholds[0], thresholds[1]), resampling)
            tests = _delong_tests(samples, metrics)
        else:
            queries = pair_queries(*_frames(first.queries, second.queries, pairs[0][0]))
            values = query_differences(queries, [a.metric for a, _ in pairs], resampling)
    except NotPaired as error:
        reason = str(error) if str(error) == NO_ROWS else f"no paired interval: {error}"
    corrected = dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True))
    num_tests = sum(not np.isnan(p) for p in corrected.values())
    return [
        _difference(pair, values, reason, tests.get(finding), (corrected.get(finding), num_tests))
        if pair[0].metric == "auroc" and (finding := pair[0].finding) is not None
        else _difference(pair, values, reason)
        for pair in pairs
    ]


def _of_the_same_scores(metrics: Sequence[MetricResult], where: MetricResult) -> list[MetricResult]:
    """Results that may name the thresholds behind ``where``, those of its own class set last.

    A further class set, such as 16 of the 18 findings, is there as a mean only.
    """
    names = ("dataset", "label_source", "protocol", "direction")
    found = [item for item in metrics if all(getattr(item, n) == getattr(where, n) for n in names)]
    return sorted(found, key=lambda item: item.class_set == where.class_set)


def _difference(
    pair: _Pair,
    values: dict[Key, PairedValue],
    reason: str | None,
    test: AurocDifference | None = None,
    corrected: tuple[float | None, int] = (None, 0),
) -> MetricDifference:
    item, other = pair
    paired = values.get((item.metric, item.finding, item.threshold_source))
    reason = reason or _why_not(pair, paired)
    content = {
        **item.model_dump(include={*Provenance.model_fields, "metric", "finding", "direction"}),
        "first": _value(item),
        "second": _value(other),
    }
    notes = [reason] if reason else []
    if item.n != other.n or item.n_positive != other.n_positive:
        notes.append(f"measured on other items: n = {item.n} and {other.n}")
    if paired is not None and not reason:
        interval = paired.interval
        content |= {
            "difference": paired.second - paired.first,
            "ci_low": interval.low,
            "ci_high": interval.high,
            "ci_level": interval.level,
            "ci_method": f"paired {interval.method}, {interval.num_resamples} resamples",
        }
        if interval.num_undefined:
            notes.append(
                f"{interval.num_undefined} of {interval.num_resamples} resamples undefined and left out"
            )
        if test is not None:
            content["delong_method"] = test.method
            if test.undefined_because:
                notes.append(f"DeLong's test is undefined: {test.undefined_because}")
            else:
                p_holm, content["num_tests"] = corrected
                content |= {"delong_p": test.p_value, "delong_p_holm": p_holm}
    return MetricDifference.model_validate({**content, "note": "; ".join(notes) or None})


def _why_not(pair: _Pair, paired: PairedValue | None) -> str | None:
    """Why there is no paired difference; None where there is."""
    stored = [item.value for item in pair]
    missing = [word for word, value in zip(("first", "second"), stored, strict=True) if value is None]
    if missing:
        return f"undefined for the {' and the '.join(missing)}"
    if paired is None:
        return "no paired interval: the rows do not tell this metric"
    if any(
        value is None or not abs(value - own) <= _AGREEMENT
        for value, own in zip(stored, (paired.first, paired.second), strict=True)
    ):
        return "no paired interval: the rows do not give the number in results.json"
    if not paired.is_same_mean:
        return "no paired interval: the two are means of different findings"
    if np.isnan(paired.interval.low):
        return "no paired interval: fewer than two patients, or undefined in most resamples"
    return None


def _delong_tests(
    samples: tuple[FindingScores, FindingScores], metrics: Sequence[MetricResult]
) -> dict[str, AurocDifference]:
    """Test the findings whose AUROC both results have, and which both models score."""
    tests = {}
    wanted = {item.finding for item in metrics if item.metric == "auroc"}
    for column, key in enumerate(samples[0].keys):
        if key in wanted and not any(key in sample.undefined for sample in samples):
            first, second = (sample.scores[:, column] for sample in samples)
            tests[key] = delong_test(first, second, samples[0].labels[:, column], samples[0].patient_ids)
    return tests


def _frames(
    first: pd.DataFrame | None, second: pd.DataFrame | None, where: MetricResult
) -> tuple[pd.DataFrame, pd.DataFrame]:
    if first is None or second is None:
        raise NotPaired(NO_ROWS)
    frames = rows_of(first, where), rows_of(second, where)
    if not len(frames[0]) or not len(frames[1]):
        raise NotPaired(NO_ROWS)
    return frames


def _value(item: MetricResult) -> ComparedValue:
    return ComparedValue(
        value=item.value, ci_low=item.ci_low, ci_high=item.ci_high, n=item.n, n_positive=item.n_positive
    )


def _remarks(
    first: Run, second: Run, alone: Sequence[Sequence[MetricResult]], shared: Sequence[_Pair]
) -> list[str]:
    remarks = []
    phantoms = [run.results.phantom for run in (first, second)]
    if all(phantoms):
        remarks.append("These are phantom results: they show that the software works.")
    elif any(phantoms):
        which = "first" if phantoms[0] else "second"
        remarks.append(f"Only the {which} was measured on phantoms: the two cannot be compared.")
    if alone[0] or alone[1]:
        remarks.append(
            f"{len(alone[0])} metrics are in the first only, {len(alone[1])} in the second only: "
            f"{_what_differs(*alone)}."
        )
    num_other = sum(a.n != b.n or a.n_positive != b.n_positive for a, b in shared)
    if num_other:
        remarks.append(f"{num_other} of {len(shared)} metrics were measured on other numbers of items.")
    return remarks


def _what_differs(first: Sequence[MetricResult], second: Sequence[MetricResult]) -> str:
    """What the results that only one has were measured on, where that differs."""
    parts = []
    for name in (*WHERE, "threshold_source"):
        texts = [sorted({str(getattr(item, name)) for item in items}) for items in (first, second)]
        if first and second and texts[0] != texts[1]:
            parts.append(f"{name.replace('_', ' ')} {' | '.join(texts[0])} against {' | '.join(texts[1])}")
    return "; ".join(parts) or "other metrics or findings"
