import numpy as np
import pytest

from radtower.evaluation.results import Provenance
from radtower.evaluation.zero_shot.finding_results import zero_shot_results

PROVENANCE = Provenance(dataset="d", class_set="three", label_source="truth", protocol="prompt ensemble")
SCORES = np.array([[0.9, 0.2, 0.5], [0.1, 0.8, 0.4], [0.8, 0.6, 0.3], [0.3, 0.9, 0.2], [0.2, 0.1, 0.1]])
# Finding a: 0.9 and 0.2 against 0.1, 0.8, 0.3: 3 + 1 of 6 pairs. Finding b, one unknown: 0.2 and 0.6
# against 0.9 and 0.1: 1 + 1 of 4 pairs. Finding c: one class.
LABELS = np.array([[1, 1, 1], [0, -100, 1], [0, 1, 1], [0, 0, 1], [1, 0, 1]])


def test_one_result_per_finding_behind_their_mean():
    results = zero_shot_results(SCORES, LABELS, list("vwxyz"), ["a", "b", "c"], PROVENANCE, 200)
    assert [(r.metric, r.finding) for r in results] == [
        ("macro_auroc", None),
        ("auroc", "a"),
        ("auroc", "b"),
        ("auroc", "c"),
    ]
    macro, a, b, c = results
    assert a.value == pytest.approx(4 / 6)
    assert b.value == pytest.approx(2 / 4)
    assert macro.value == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert c.value is None
    assert "one class only" in c.note
    assert macro.note.startswith("mean of 2 of 3 findings")
    assert [(r.n, r.n_positive) for r in results] == [(5, None), (5, 2), (4, 2), (5, 5)]
    assert a.ci_low <= a.value <= a.ci_high
    assert all((r.label_source, r.protocol) == ("truth", "prompt ensemble") for r in results)
    assert "200 resamples" in a.ci_method


def test_no_finding_with_both_classes_is_undefined_and_not_one_half():
    macro = zero_shot_results(SCORES, np.ones((5, 3)), list("vwxyz"), ["a", "b", "c"], PROVENANCE, 50)[0]
    assert macro.value is None
    assert "no finding has both classes" in macro.note
