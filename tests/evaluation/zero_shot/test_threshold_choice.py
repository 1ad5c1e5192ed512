import numpy as np
import pytest

from radtower.evaluation.decisions.finding_scores import FindingScores
from radtower.evaluation.zero_shot.protocol import load_protocol
from radtower.evaluation.zero_shot.scored_items import ScoredItems
from radtower.evaluation.zero_shot.threshold_choice import ThresholdChoice, parse_choices

PROTOCOL = load_protocol("ct_rate_18")
SPLITS = {"train", "validation", "test"}


def items(scores, labels=(0, 0, 1, 1), undefined=None):
    sample = FindingScores(
        scores=np.array(scores, dtype=float)[:, None], labels=np.array(labels)[:, None],
        patient_ids=list("abcd"), keys=["nodule"], undefined=undefined or {},
    )  # fmt: skip
    return ScoredItems(sample, np.arange(4), 4, "volume")


TEST = items([0.1, 0.2, 0.3, 0.4])
VALIDATION = items([0.5, 0.6, 0.7, 0.8])


def test_without_a_word_validation_is_taken_where_it_can_be():
    usual = ThresholdChoice("validation", "nearest_corner")
    assert parse_choices((), PROTOCOL, SPLITS) == (usual,)
    assert parse_choices((), PROTOCOL, SPLITS, "youden") == (ThresholdChoice("validation", "youden"),)
    assert parse_choices((), PROTOCOL, {"train", "test"}) == ()
    assert parse_choices((), PROTOCOL.overridden(split="all"), SPLITS) == ()
    assert parse_choices(["none"], PROTOCOL, SPLITS) == ()
    assert parse_choices(["validation", "test_oracle", "0.5"], PROTOCOL, SPLITS) == (
        usual,
        ThresholdChoice("test_oracle", "legacy_ct_clip"),
        ThresholdChoice(None, value=0.5),
    )


def test_each_is_chosen_on_its_own_rows():
    validation, oracle, fixed = parse_choices(
        ["validation", "test_oracle", "0.45"], PROTOCOL, SPLITS, "max_f1"
    )
    found = [choice.thresholds(TEST, VALIDATION)[0] for choice in (validation, oracle, fixed)]
    assert [threshold.value for threshold in found] == [0.7, 0.3, 0.45]
    assert [threshold.source for threshold in found] == [
        "validation split, max F1",
        "test_oracle: chosen on the very labels it is measured on, max F1",
        "fixed at 0.45",
    ]


def test_a_grid_is_not_laid_over_logits():
    legacy = ThresholdChoice("test_oracle", "legacy_ct_clip")
    assert legacy.thresholds(TEST, None)[0].value == pytest.approx(29 / 99)
    for scores in ([-1.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.5]):
        threshold = legacy.thresholds(items(scores), None)[0]
        assert threshold.value is None
        assert threshold.source == legacy.thresholds(TEST, None)[0].source
        assert "looks from 0 to 1" in threshold.undefined_because
    unknown = items([np.nan] * 4, undefined={"nodule": "not known"})
    assert "no score for it" in legacy.thresholds(unknown, None)[0].undefined_because


@pytest.mark.parametrize(
    ("words", "changes", "splits", "rule", "message"),
    [
        (["valid"], {}, SPLITS, None, "validation or test_oracle, or a number, got 'valid'"),
        (["nan"], {}, SPLITS, None, "a number, got 'nan'"),
        (["inf"], {}, SPLITS, None, "a number, got 'inf'"),
        (["0.5", "0.5"], {}, SPLITS, None, "named once each, or none of them, got 0.5, 0.5"),
        (["0.5", ".5"], {}, SPLITS, None, r"fixed thresholds must differ, got 0\.5, \.5"),
        (["0.5"], {"score": "margin"}, SPLITS, None, "one of probabilities, got 0.5 for --score margin"),
        (["none", "0.5"], {}, SPLITS, None, "got none, 0.5"),
        (["validation"], {}, {"test"}, None, "another split: the manifest has no validation split"),
        (["validation"], {"split": "all"}, SPLITS, None, "the validation split is under test"),
        (["validation"], {"split": "validation"}, SPLITS, None, "the validation split is under test"),
        ([], {}, SPLITS, "best", "threshold rule must be one of max_f1, .*, got 'best'"),
        (
            ["test_oracle"],
            {"score": "margin"},
            SPLITS,
            None,
            "softmax for the rule legacy_ct_clip.*got margin",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused(words, changes, splits, rule, message):
    with pytest.raises(ValueError, match=message):
        parse_choices(words, PROTOCOL.overridden(**changes), splits, rule)
