"""What was asked for is checked before the work."""

import pandas as pd
import pytest

from radtower.data.manifest import Manifest
from radtower.evaluation.pairs.retrieval_plan import plan_retrieval, volumes_needed


def test_the_usual_plan() -> None:
    plan = plan_retrieval([], [], [], has_reports=True)
    assert (plan.tasks, plan.pair_protocols, plan.exclusions, plan.is_legacy) == (("pairs",), (), (), False)
    assert (plan.pair_ks, plan.image_ks) == ((1, 5, 10, 50, 100), (1, 5, 10, 50))
    assert not plan.measures_images
    images = plan_retrieval([], [], [], has_reports=False)
    assert (images.tasks, images.measures_images) == (("images",), True)


def test_protocols_go_to_their_task() -> None:
    asked = ["study-excluded", "report", "legacy-ct-clip", "exact-row", "self-excluded"]
    plan = plan_retrieval(["images", "pairs"], asked, [3, 1, 3], has_reports=True)
    assert plan.tasks == ("pairs", "images")
    assert plan.pair_protocols == ("exact-row", "report")
    assert plan.exclusions == ("self-excluded", "study-excluded")
    assert (plan.is_legacy, plan.measures_images) == (True, True)
    assert plan.pair_ks == plan.image_ks == (3, 1)
    alone = plan_retrieval(["images"], ["legacy-ct-clip"], [], has_reports=True)
    assert (alone.is_legacy, alone.measures_images) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["text"], [], []), "task must be one of pairs, images, got 'text'"),
        ((["pairs"], [], [], "findings", False), "task must be images for an image tower, got pairs"),
        (([], ["self-excluded"], []), "got 'self-excluded'. Add --task images"),
        ((["images"], ["study"], []), "got 'study'. Add --task pairs"),
        (([], ["case"], []), "one of exact-row, study, study-level, report, got 'case'. Choose one"),
        (([], [], [0, 5, -1]), r"ks must be at least 1, got \[0, -1\]"),
        ((["images"], [], [], "reports"), "relevance must be one of findings, concepts, irma, got 'reports'"),
        (
            (["images"], ["legacy-ct-clip"], [], "irma"),
            "relevance must be findings for the protocol legacy-ct-clip, got irma",
        ),
    ],
)
def test_refuses(arguments: tuple, message: str) -> None:
    *positional, has_reports = arguments if len(arguments) == 5 else (*arguments, True)
    with pytest.raises(ValueError, match=message):
        plan_retrieval(*positional, has_reports=has_reports)


def test_what_does_not_fit_the_data_is_refused() -> None:
    pairs = plan_retrieval([], [], [], has_reports=True)
    with pytest.raises(ValueError, match="must come with the task images, got train for pairs only"):
        pairs.check_data("test", ["train"], 50)
    with pytest.raises(ValueError, match=r"at least two items to choose from, got 1\. Choose"):
        pairs.check_data("test", [], 1)
    pairs.check_data("test", [], 2)
    with pytest.raises(ValueError, match=r"ks must be between 1 and 3, got \[5\]"):
        plan_retrieval([], [], [2, 5], has_reports=True).check_data("test", [], 4)
    legacy = plan_retrieval(["images"], ["legacy-ct-clip"], [], has_reports=True)
    legacy.check_data("test", ["test"], 1)
    with pytest.raises(ValueError, match="must search the split that asks, got test, train"):
        legacy.check_data("test", ["test", "train"], 1)


def test_the_split_that_asks_comes_first() -> None:
    frame = pd.DataFrame({"volume_id": list("abcd"), "split": ["train", "test", "validation", "train"]})
    needed = volumes_needed(Manifest(frame), "test", ["train", "test"])
    assert needed.frame["volume_id"].tolist() == list("bad")
    with pytest.raises(ValueError, match="split must be one of test, train, validation"):
        volumes_needed(Manifest(frame), "test", ["other"])
