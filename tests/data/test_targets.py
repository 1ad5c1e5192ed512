import numpy as np
import pandas as pd
import pytest

from radtower.data.targets import MASKED_TARGET, TargetPolicy, numeric_targets, training_target
from radtower.labeling.findings import Status


@pytest.mark.parametrize(
    ("status", "options", "target"),
    [
        (Status.PRESENT, {}, 1.0),
        (Status.ABSENT, {}, 0.0),
        (Status.NOT_MENTIONED, {}, 0.0),
        (Status.UNCERTAIN, {}, -100.0),
        (None, {}, -100.0),
        (None, {"uncertain": 0.5, "not_mentioned": 0.1}, -100.0),
        (Status.UNCERTAIN, {"uncertain": 0.3}, 0.3),
        (Status.NOT_MENTIONED, {"not_mentioned": None}, -100.0),
        (Status.NOT_MENTIONED, {"uncertain": 0.3, "not_mentioned": 0.2}, 0.2),
        ("present", {"uncertain": 0.3, "not_mentioned": 0.2}, 1.0),
        ("absent", {"uncertain": 0.3, "not_mentioned": 0.2}, 0.0),
    ],
)
def test_the_rule(status, options, target):
    assert training_target(status, **options) == target


@pytest.mark.parametrize("status", [-1, 1, 0.0, "Present", "not mentioned"])
def test_anything_but_a_state_is_refused(status):
    with pytest.raises(ValueError, match=f"status must be one of present, .* got {status!r}"):
        training_target(status)


def test_a_table_follows_the_same_rule():
    statuses = pd.DataFrame({"a": ["present", "uncertain", None], "b": ["not_mentioned", "absent", np.nan]})
    policy = TargetPolicy(uncertain=0.25, not_mentioned=None)
    targets = policy.targets_from_status(statuses)
    assert targets.dtype == np.float32
    assert targets.tolist() == [[1.0, -100.0], [0.25, 0.0], [-100.0, -100.0]]


@pytest.mark.parametrize("field", ["uncertain", "not_mentioned"])
@pytest.mark.parametrize("value", [-1.0, 1.5, float("nan")])
def test_a_policy_outside_zero_to_one_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be in .* got {value!r}"):
        TargetPolicy(**{field: value})


def test_the_rule_is_described_in_words():
    assert TargetPolicy().describe() == (
        "Training targets: present is 1, absent is 0, not mentioned is 0 "
        "and uncertain is masked out of the loss."
    )
    assert (
        "not mentioned is masked out of the loss and uncertain is 0.3."
        in TargetPolicy(uncertain=0.3, not_mentioned=None).describe()
    )


def test_numeric_labels_pass_and_missing_ones_are_masked():
    targets = numeric_targets(pd.DataFrame({"a": [1, 0], "b": [np.nan, 0.5]}))
    assert targets.dtype == np.float32
    assert targets.tolist() == [[1.0, MASKED_TARGET], [0.0, 0.5]]
    assert numeric_targets(np.array([[-100.0, 1.0]])).tolist() == [[-100.0, 1.0]]


@pytest.mark.parametrize("value", [-1.0, 2.0, -99.0])
def test_minus_one_and_other_numbers_are_refused(value):
    with pytest.raises(ValueError, match=rf"got \[{value}\]"):
        numeric_targets(np.array([[1.0, value]]))


def test_cells_of_a_file_are_states_or_numbers():
    policy = TargetPolicy(uncertain=0.5)
    states = pd.DataFrame({"a": ["present", None], "b": ["uncertain", "absent"]})
    assert policy.targets_from_cells(states).tolist() == [[1, 0.5], [-100, 0]]
    numbers = pd.DataFrame({"a": ["1", None], "b": ["0.25", "-100"]})
    assert policy.targets_from_cells(numbers).tolist() == [[1, 0.25], [-100, -100]]
    with pytest.raises(ValueError, match="numbers or present, absent, uncertain, not_mentioned, got 1 other"):
        policy.targets_from_cells(pd.DataFrame({"a": ["1", "yes"]}))
