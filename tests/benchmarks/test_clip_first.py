"""The arithmetic of the study; training the arms takes half an hour."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "clip_first.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("clip_first", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["clip_first"] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["clip_first"]


@pytest.fixture
def plan(study):
    return study.Plan(
        demo="demo",
        vision_epochs=9,
        clip_epochs=3,
        scratch_learning_rates=(1e-3, 3e-3),
        is_raw_text=False,
    )


TRUTH = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
NOTHING = np.empty(0)


def _scores(study, zero_shot, ranks=((1, 6, 11, 2), (5, 10, 1, 50)), head=NOTHING):
    return study.Scores(np.array(zero_shot, float), head, np.array(ranks, float), 1.0, 12.0)


PERFECT = TRUTH.astype(float)
HALF = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]])  # the first finding at chance, the second known


def test_metrics_of_all_rows_are_those_by_hand(study):
    values = study.weighted_metrics(_scores(study, HALF, head=PERFECT), TRUTH, np.ones((1, 4)))
    named = dict(zip(study.METRICS, values[0], strict=False))
    assert named == {
        "zero_shot_macro_auroc": 0.75,
        "head_macro_auroc": 1.0,
        "recall_at_5_image_to_report": 0.5,
        "recall_at_10_image_to_report": 0.75,
        "recall_at_5_report_to_image": 0.5,
        "recall_at_10_report_to_image": 0.75,
    }
    assert values[0, len(study.METRICS) :].tolist() == [0.5, 1.0]


def test_rows_count_as_often_as_they_are_drawn_and_what_is_missing_is_nan(study):
    counts = np.array([[3, 0, 1, 0]])  # of the second finding, one class
    values = study.weighted_metrics(_scores(study, HALF), TRUTH, counts)[0]
    assert values[0] == 0.5
    assert np.isnan(values[1])
    assert values[2:6].tolist() == [0.75, 0.75, 1.0, 1.0]


def test_arms_are_resampled_alike_so_that_differences_are_paired(study):
    patients = np.array(["a", "b", "c", "d"])
    left = [_scores(study, HALF), _scores(study, PERFECT)]
    per_seed, resampled = study.crossed_bootstrap(left, TRUTH, patients, 200)
    assert per_seed[:, 0].tolist() == [0.75, 1.0]
    assert resampled.shape == (200, len(study.METRICS) + 2)
    _, again = study.crossed_bootstrap([_scores(study, HALF), _scores(study, PERFECT)], TRUTH, patients, 200)
    np.testing.assert_array_equal(resampled, again)
    # Where no patient differs, seeds still do: drawn twice the first, each once, twice the second.
    _, of_one = study.crossed_bootstrap(
        [_scores(study, HALF, ranks=((r,) * 4,) * 2) for r in (1, 99)], TRUTH, patients, 200
    )
    assert set(of_one[:, 2]) == {0.0, 0.5, 1.0}


def test_every_arm_has_the_passes_of_both_stages_and_arms_with_a_first_stage_share_it(study, plan):
    arms = study.make_arms(plan)
    assert [arm.name for arm in arms] == [
        "scratch",
        "scratch_head",
        "scratch@0.003",
        "scratch_head@0.003",
        "supervised",
        "supervised_head",
    ]
    assert [arm.learning_rate for arm in arms] == [1e-3, 1e-3, 3e-3, 3e-3, 1e-3, 1e-3]
    jobs = [(seed, [arm.name for arm in group]) for seed, group in study.make_jobs(arms, 2)]
    assert jobs[:3] == [
        (0, ["supervised", "supervised_head"]),
        (1, ["supervised", "supervised_head"]),
        (0, ["scratch"]),
    ]
    assert len(jobs) == 10


def test_scores_come_back_from_their_file(study, plan, tmp_path):
    study.Study(plan, tmp_path, 0).write("scratch", _scores(study, HALF), 7.0, 12.0)
    (found,) = study.read_scores(tmp_path, "scratch", 1)
    np.testing.assert_array_equal(found.zero_shot, HALF)
    assert (found.head.size, found.seconds, found.num_passes) == (0, 7.0, 12.0)
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["scratch-0.npz"]


def test_a_folder_keeps_the_scores_of_one_plan(study, plan, tmp_path):
    study.require_same_plan(plan, tmp_path)
    study.require_same_plan(plan, tmp_path)
    with pytest.raises(
        ValueError, match=r"output must hold scores of this plan, got another \['clip_epochs'\]"
    ):
        study.require_same_plan(replace(plan, clip_epochs=4), tmp_path)


def test_the_table_marks_what_an_arm_has_not(study):
    number = {"value": 0.614, "interval": [0.5, 0.7]}
    summary = {
        "arms": {"scratch": {"zero_shot_macro_auroc": number}},
        "differences": {
            "a - b": {"zero_shot_macro_auroc": {"value": -0.001, "interval": [-0.1, 0.1]}},
            "a - classifier": {},
        },
        "num_studies": 4,
        "num_patients": 4,
        "num_seeds": 2,
        "interval": "95 %",
        "labels": "silver",
    }
    lines = study.markdown(summary).splitlines()
    assert lines[2] == "| scratch | 0.61 (0.50-0.70) | - | - | - | - | - |"
    assert lines[6] == "| a - b | +0.00 (-0.10 to +0.10) | - | - | - | - | - |"
    assert "classifier" not in "".join(lines)
