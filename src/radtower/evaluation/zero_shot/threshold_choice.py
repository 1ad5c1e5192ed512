"""Where thresholds come from: validation, the labels under test (and named so), or the user."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import get_args

from radtower.evaluation.decisions.thresholds import (
    Origin,
    Rule,
    Threshold,
    choose_thresholds,
    fixed_thresholds,
    source_text,
)
from radtower.evaluation.zero_shot.protocol import ALL_SPLITS, Protocol
from radtower.evaluation.zero_shot.scored_items import ScoredItems

# What the published work did, on the split that it should have used, and as CT-CLIP did it.
ON_A_GRID: Rule = "legacy_ct_clip"
USUAL_RULES: dict[Origin, Rule] = {"validation": "nearest_corner", "test_oracle": ON_A_GRID}


@dataclass(frozen=True)
class ThresholdChoice:
    """One way to come by thresholds.

    Args:
        origin: Rows that they are chosen on; None takes ``value``.
        rule: How, see :func:`choose_thresholds`; None where ``value`` is given.
        value: The same threshold for every finding.
    """

    origin: Origin | None
    rule: Rule | None = None
    value: float | None = None

    def thresholds(self, test: ScoredItems, validation: ScoredItems | None) -> list[Threshold]:
        """Return one threshold per finding.

        Args:
            test: Items under test.
            validation: Items to choose on; needed where the origin is ``validation``.
        """
        if self.value is not None:
            return fixed_thresholds(self.value, len(test.sample.keys))
        assert self.origin is not None  # by parse_choices
        assert self.rule is not None
        rows = validation if self.origin == "validation" else test
        assert rows is not None  # the caller has scored that split
        scores = rows.sample.scores[:, rows.sample.scored_columns]
        if self.rule == ON_A_GRID and not ((scores >= 0) & (scores <= 1)).all():
            reason = f"no threshold: {ON_A_GRID} looks from 0 to 1, and the scores of this read-out go beyond"
            source = source_text(self.rule, self.origin)
            return [Threshold(None, source, undefined_because=reason)] * len(rows.sample.keys)
        return choose_thresholds(rows.sample.scores, rows.sample.labels, self.rule, self.origin)


def parse_choices(
    words: Sequence[str], protocol: Protocol, splits: Collection[str], rule: str | None = None
) -> tuple[ThresholdChoice, ...]:
    """Return the choices that a user names.

    Args:
        words: ``validation``, ``test_oracle``, a number, each once; or ``none``. No word is ``validation``
            where that is possible.
        protocol: Says which split is under test, and what scores are.
        splits: What the manifest has.
        rule: For all that are chosen. None takes the usual one of each.

    Raises:
        ValueError: If a word is none of these or comes twice, there is no such rule or it or a number does
            not fit the scores, or thresholds cannot be chosen on validation.
    """
    if rule is not None and rule not in get_args(Rule):
        raise ValueError(f"the threshold rule must be one of {', '.join(get_args(Rule))}, got {rule!r}.")
    reason = why_no_validation(protocol.split, splits)
    if not words:
        return () if reason else (ThresholdChoice("validation", _rule("validation", rule)),)
    if len(set(words)) < len(words) or ("none" in words and len(words) > 1):
        raise ValueError(f"thresholds must be named once each, or none of them, got {', '.join(words)}.")
    if "validation" in words and reason:
        raise ValueError(f"thresholds can be chosen on validation only where it is another split: {reason}.")
    choices = tuple(_parsed(word, rule) for word in words if word != "none")
    values = [choice.value for choice in choices if choice.value is not None]
    if len(set(values)) < len(values):
        raise ValueError(f"fixed thresholds must differ, got {', '.join(words)}. Name each once.")
    if protocol.score == "margin" and values:
        raise ValueError(
            f"a fixed threshold must be one of probabilities, got {values[0]:g} for --score margin, whose "
            "scale is that of the model. Choose a softmax, or validation."
        )
    if protocol.score == "margin" and any(choice.rule == ON_A_GRID for choice in choices):
        raise ValueError(
            f"the score must be a softmax for the rule {ON_A_GRID}, whose grid is from 0 to 1, got margin. "
            "Choose another rule."
        )
    return choices


def why_no_validation(split: str, splits: Collection[str]) -> str | None:
    """Return why no thresholds can be chosen on the validation split; None where they can."""
    if "validation" not in splits:
        return "the manifest has no validation split"
    if split in ("validation", ALL_SPLITS):
        return "the validation split is under test"
    return None


def _parsed(word: str, rule: str | None) -> ThresholdChoice:
    for origin in get_args(Origin):
        if word == origin:
            return ThresholdChoice(origin, _rule(origin, rule))
    try:
        return ThresholdChoice(None, value=_finite(word))
    except ValueError:
        raise ValueError(
            f"a threshold must be {' or '.join(get_args(Origin))}, or a number, got {word!r}. Choose "
            "validation, unless published numbers shall be reproduced."
        ) from None


def _rule(origin: Origin, rule: str | None) -> Rule:
    chosen: Rule = USUAL_RULES[origin] if rule is None else rule  # type: ignore[assignment]
    return chosen


def _finite(word: str) -> float:
    value = float(word)
    if not abs(value) < float("inf"):
        raise ValueError(word)
    return value
