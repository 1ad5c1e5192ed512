"""From which score on a finding is called present, and who chose that.

A threshold that was chosen on the labels it is measured on flatters the model; ``test_oracle`` exists to
reproduce numbers that were published so, and says it wherever the number goes.
Axes: N rows, F findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from radtower.evaluation.ranked_scores import check_scores_and_labels

Rule = Literal["max_f1", "youden", "nearest_corner", "legacy_ct_clip"]
Origin = Literal["validation", "test_oracle"]
RULES: dict[Rule, str] = {
    "max_f1": "max F1",
    "youden": "max Youden J",
    "nearest_corner": "nearest to the (0, 1) corner",
    "legacy_ct_clip": "legacy_ct_clip: nearest to the (0, 1) corner on a 100-step grid",
}
_GRID_STEPS = 100  # CT-CLIP, scripts/bootstrap_values.py


@dataclass(frozen=True)
class Threshold:
    """A score, and where it comes from.

    Args:
        value: A row whose score is at least this is called positive; None where there is no threshold.
        source: Who chose it, as the results say it.
        is_strict: The score has to be above it: CT-CLIP's comparison.
        undefined_because: Why there is none.

    Raises:
        ValueError: If there is neither a value nor a reason, or the source is empty.
    """

    value: float | None
    source: str
    is_strict: bool = False
    undefined_because: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.undefined_because) or self.value != self.value:
            raise ValueError(
                f"a threshold must have a value or a reason why it has none, got {self.value} and "
                f"{self.undefined_because!r}. Say one of the two."
            )
        if not self.source.strip():
            raise ValueError("source must say who chose the threshold, got an empty text. Name it.")

    @property
    def lowest_positive(self) -> float | None:
        """The lowest float64 that is called positive."""
        return (
            float(np.nextafter(self.value, np.inf))
            if self.value is not None and self.is_strict
            else self.value
        )

    def is_positive(self, scores: np.ndarray) -> np.ndarray:
        """Return the decision of every score; all False without a threshold."""
        if self.value is None:
            return np.zeros(scores.shape, dtype=bool)
        # In float64: a float32 threshold would be rounded, and its own score fall below it.
        values = scores.astype(np.float64)
        return values > self.value if self.is_strict else values >= self.value


def fixed_thresholds(value: float, num_findings: int) -> list[Threshold]:
    """Return the same threshold for every finding, chosen by nobody's labels."""
    return [Threshold(float(value), f"fixed at {float(value)!r}")] * num_findings


def choose_thresholds(
    scores: np.ndarray, labels: np.ndarray, rule: Rule, origin: Origin = "validation"
) -> list[Threshold]:
    """Choose a threshold for every finding.

    Args:
        scores: ``(N, F)`` of the rows to choose on; a column of NaN has no threshold.
        labels: ``(N, F)``, 0, 1 or -100.
        rule: ``max_f1``: largest F1 of the positive class. ``youden``: largest sensitivity + specificity.
            ``nearest_corner``: smallest distance to sensitivity 1 and specificity 1. These look at the
            scores themselves; of equally good ones the highest is taken. ``legacy_ct_clip``: the last of
            the nearest of ``linspace(0, 1, 100)``, exceeded strictly, as CT-CLIP's bootstrap_values.py does.
        origin: Where the rows come from: ``validation``, or ``test_oracle`` for the rows under test.

    Raises:
        ValueError: If a shape, a label, the rule or the origin is invalid, or a score is outside [0, 1] for
            ``legacy_ct_clip``.
    """
    for name, value, known in (("rule", rule, get_args(Rule)), ("origin", origin, get_args(Origin))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}. Choose one.")
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(
            f"scores and labels must be (N, F), got shapes {scores.shape} and {labels.shape}. "
            "Give one row per item and one column per finding."
        )
    return [_choose(scores[:, f], labels[:, f], rule, origin) for f in range(scores.shape[1])]


def source_text(rule: Rule, origin: Origin) -> str:
    """Return how results name a rule and where it was applied."""
    if origin == "validation":
        return f"validation split, {RULES[rule]}"
    return f"test_oracle: chosen on the very labels it is measured on, {RULES[rule]}"


def common_source(thresholds: Sequence[Threshold]) -> str:
    """Return the one source of thresholds that are reported together.

    Raises:
        ValueError: If they have several.
    """
    sources = sorted({threshold.source for threshold in thresholds})
    if len(sources) != 1:
        raise ValueError(
            f"thresholds must have one source, got {len(sources)}: {'; '.join(sources)}. "
            "Report them separately."
        )
    return sources[0]


def _choose(scores: np.ndarray, labels: np.ndarray, rule: Rule, origin: Origin) -> Threshold:
    source = source_text(rule, origin)
    where = "validation" if origin == "validation" else "the rows under test"
    if len(scores) and np.isnan(scores).all():
        return Threshold(None, source, undefined_because="no threshold: the read-out has no score for it")
    check_scores_and_labels(scores, labels)
    is_known = labels >= 0
    values, truth = scores[is_known].astype(np.float64), labels[is_known] == 1
    if truth.all() or not truth.any():
        missing = "known label" if not len(truth) else "negative" if truth.all() else "positive"
        reason = f"no threshold: {where} has no {missing}"
        return Threshold(None, source, undefined_because=reason)
    if rule == "legacy_ct_clip":
        return Threshold(_nearest_on_grid(values, truth), source, is_strict=True)
    candidates = np.unique(values)
    goodness = _goodness(rule, values, truth, candidates)
    # Sums and roots of equal rates may differ by rounding, which must not choose.
    best = np.flatnonzero(goodness >= goodness.max() - 1e-12)[-1]
    return Threshold(float(candidates[best]), source)


def _goodness(rule: Rule, values: np.ndarray, truth: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """How good each candidate is, the larger the better."""
    high, low = np.sort(values[truth]), np.sort(values[~truth])
    tp = len(high) - np.searchsorted(high, candidates)
    fp = len(low) - np.searchsorted(low, candidates)
    if rule == "max_f1":
        return 2 * tp / (tp + fp + len(high))
    sensitivity, false_alarms = tp / len(high), fp / len(low)
    if rule == "youden":
        return sensitivity - false_alarms
    return -np.hypot(1 - sensitivity, false_alarms)


def _nearest_on_grid(values: np.ndarray, truth: np.ndarray) -> float:
    if values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"scores must be in [0, 1] for legacy_ct_clip, whose grid is, got {values.min():g} to "
            f"{values.max():g}. Score with the softmax over the pair, or choose another rule."
        )
    grid = np.linspace(0, 1, _GRID_STEPS)
    called = values[:, None] > grid
    missed, false_alarms = 1 - called[truth].mean(axis=0), called[~truth].mean(axis=0)
    distance = np.sqrt(missed**2 + false_alarms**2)
    return float(grid[len(grid) - 1 - np.argmin(distance[::-1])])
