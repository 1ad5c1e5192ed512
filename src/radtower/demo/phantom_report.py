"""Writes the report of a phantom, and says what the text states about each finding.

The status is the gold label of the *text*: a report may hedge on a finding that is there, or pass over one
that is absent. The truth of the volume is ``Phantom.placed``.
"""

from dataclasses import dataclass

import numpy as np

from radtower.demo import phantom_wording as wording
from radtower.demo.phantom import Phantom
from radtower.demo.phantom_findings import PHANTOM_FINDINGS, PlacedFinding
from radtower.labeling.findings import Status

STYLES: tuple[str, ...] = ("long", "telegraphic", "abbreviated")
# Fewest and most words of a report; the text tower of the demo reads 128 tokens.
WORD_LIMITS: dict[str, tuple[int, int]] = {
    "long": (40, 110),
    "telegraphic": (25, 50),
    "abbreviated": (25, 50),
}
_REPORT_STREAM = 100  # a random stream that no part of the volume uses
_P_HEDGE_PRESENT, _P_HEDGE_ABSENT, _P_SILENT = 0.06, 0.03, 0.35
_LOBES_SHORT = {
    ("right", "upper lobe"): "RUL",
    ("right", "middle lobe"): "RML",
    ("right", "lower lobe"): "RLL",
    ("left", "upper lobe"): "LUL",
    ("left", "lower lobe"): "LLL",
    ("left", "lingula"): "lingula",
}
_ARTERIES_SHORT = {"left anterior descending": "LAD", "circumflex": "LCx", "right coronary": "RCA"}
_VOLUMES = {"mild": "small", "moderate": "moderate", "severe": "large"}


@dataclass(frozen=True, kw_only=True)
class PhantomReport:
    """A report and its gold labels.

    Attributes:
        findings: Findings section, without its heading.
        impression: Impression section, without its heading.
        status: For every phantom finding ``present``, ``absent``, ``uncertain`` or ``not_mentioned``:
            what the text says, which the volume need not confirm.
        style: Entry of ``STYLES``.
    """

    findings: str
    impression: str
    status: dict[str, str]
    style: str

    @property
    def text(self) -> str:
        """Both sections under their headings."""
        return f"Findings: {self.findings} Impression: {self.impression}"


@dataclass
class _Draft:
    """Sentences by what they say; trimmed to the word limits before they are joined."""

    stated: list[str]
    negated: list[tuple[tuple[str, ...], str]]
    other: list[str]
    impression: list[str]

    def num_words(self) -> int:
        sentences = self.stated + [text for _, text in self.negated] + self.other + self.impression
        return 2 + sum(len(sentence.split()) for sentence in sentences)


def write_report(phantom: Phantom, seed: int, style: str | None = None) -> PhantomReport:
    """Write a report on what was placed in the phantom.

    Args:
        phantom: Its ``placed`` findings are described, with side, place and size.
        seed: Wording, order and omissions; any integer >= 0.
        style: Entry of ``STYLES``; None draws one.

    Raises:
        ValueError: If ``style`` is not in ``STYLES``.
    """
    rng = np.random.default_rng([seed, _REPORT_STREAM])
    drawn = str(rng.choice(STYLES))
    style = drawn if style is None else style
    if style not in STYLES:
        raise ValueError(f"style must be one of {list(STYLES)}, got {style!r}. Pass None to draw one.")
    writer = _Writer(rng, style)
    status = writer.draw_status(phantom)
    draft = writer.draft(phantom, status)
    _shorten(draft, WORD_LIMITS[style][1])
    if draft.num_words() > WORD_LIMITS[style][1]:
        writer.is_brief = True
        draft = writer.draft(phantom, status)
        _shorten(draft, WORD_LIMITS[style][1])
    writer.lengthen(draft, status)
    named = {name for names, _ in draft.negated for name in names}
    for name, value in status.items():
        if value == Status.ABSENT and name not in named:
            status[name] = Status.NOT_MENTIONED
    sentences = draft.stated + [text for _, text in draft.negated] + draft.other
    order = rng.permutation(len(sentences))
    return PhantomReport(
        findings=" ".join(sentences[i] for i in order),
        impression=" ".join(draft.impression),
        status={name: str(value) for name, value in status.items()},
        style=style,
    )


class _Writer:
    """Turns findings into sentences of one style."""

    def __init__(self, rng: np.random.Generator, style: str) -> None:
        self.rng = rng
        self.style = style
        self.is_short = style == "abbreviated"
        self.is_brief = False  # True for a patient with so much to report that only short phrases fit

    def pick(self, options: tuple[str, ...]) -> str:
        if self.is_brief:
            return min(options, key=lambda option: len(option.split()))
        return options[int(self.rng.integers(len(options)))]

    def draw_status(self, phantom: Phantom) -> dict[str, Status]:
        """Decide what the text will say about every finding."""
        status = {}
        for name in PHANTOM_FINDINGS:
            chance = self.rng.random()
            if name in phantom.findings:
                status[name] = Status.UNCERTAIN if chance < _P_HEDGE_PRESENT else Status.PRESENT
            elif chance < _P_HEDGE_ABSENT:
                status[name] = Status.UNCERTAIN
            else:
                silent = chance < _P_HEDGE_ABSENT + _P_SILENT
                status[name] = Status.NOT_MENTIONED if silent else Status.ABSENT
        return status

    def draft(self, phantom: Phantom, status: dict[str, Status]) -> _Draft:
        """Write all sentences, without regard to length."""
        present = [phantom.findings[name] for name in status if status[name] == Status.PRESENT]
        stated = [self.state(finding) for finding in present]
        stated += [self.doubt(name) for name in status if status[name] == Status.UNCERTAIN]
        absent = [name for name in status if status[name] == Status.ABSENT]
        order = [absent[i] for i in self.rng.permutation(len(absent))]
        num_listed = int(self.rng.integers(0, 5))
        listed = order[:num_listed] if num_listed > 1 else []
        negated = [(tuple(listed), self.negate_list(listed))] if len(listed) > 1 else []
        rest = order[len(listed) :] if negated else order
        negated += [((name,), self.negate(name)) for name in rest]
        chosen = self.rng.permutation(len(present))[:3]
        impression = [self.state(present[i], brief=True) for i in chosen]
        if not impression:
            impression = [self.sentence(self.pick(wording.NORMAL_IMPRESSIONS))]
        return _Draft(
            stated, negated, [self.digress() for _ in range(int(self.rng.integers(0, 3)))], impression
        )

    def lengthen(self, draft: _Draft, status: dict[str, Status]) -> None:
        """Add negations, then remarks, to a report that is too short; ``status`` follows."""
        fewest = WORD_LIMITS[self.style][0]
        named = {name for names, _ in draft.negated for name in names}
        silent = [
            name
            for name, value in status.items()
            if value in (Status.ABSENT, Status.NOT_MENTIONED) and name not in named
        ]
        order = [silent[i] for i in self.rng.permutation(len(silent))]
        # A third of the findings the report was silent on stay so, whatever the length.
        for name in order[: 2 * len(order) // 3]:
            if draft.num_words() < fewest:
                draft.negated.append(((name,), self.negate(name)))
                status[name] = Status.ABSENT
        while draft.num_words() < fewest:
            draft.other.append(self.digress())

    def state(self, finding: PlacedFinding, *, brief: bool = False) -> str:
        """Say that a finding is there."""
        words = wording.WORDINGS[finding.name]
        style = "telegraphic" if brief and self.style == "long" else self.style
        options = {"long": words.long, "telegraphic": words.terse, "abbreviated": words.abbreviated}[style]
        return self.sentence(self.pick(options).format(**self.fields(finding)))

    def doubt(self, name: str) -> str:
        """Say that a finding may be there."""
        template = self.pick(wording.UNCERTAIN_SHORT if self.is_short else wording.UNCERTAIN)
        return self.sentence(template.format(noun=self.noun(name)))

    def negate(self, name: str) -> str:
        """Say that a finding is not there, at times by naming the normal state."""
        normal = wording.WORDINGS[name].normal
        if normal and self.rng.random() < 0.3:
            return self.sentence(self.pick(normal))
        template = self.pick(wording.NEGATED_SHORT if self.is_short else wording.NEGATED)
        return self.sentence(template.format(noun=self.noun(name)))

    def negate_list(self, names: list[str]) -> str:
        """Deny several findings in one sentence."""
        template = self.pick(wording.NEGATED_LIST)
        nouns = [self.noun(name) for name in names]
        last = " nor " if template.startswith("neither") else " or "
        return self.sentence(template.format(list=", ".join(nouns[:-1]) + last + nouns[-1]))

    def digress(self) -> str:
        """Write a sentence on something that is no phantom finding."""
        options = wording.DISTRACTORS_SHORT if self.is_short else wording.DISTRACTORS
        return self.sentence(self.pick(options).format(size=int(self.rng.integers(6, 25))))

    def noun(self, name: str) -> str:
        words = wording.WORDINGS[name]
        return self.pick(words.short_nouns if self.is_short else words.nouns)

    def sentence(self, text: str) -> str:
        text = text.replace("..", ".")  # an abbreviation at the end
        return text[0].upper() + text[1:]

    def fields(self, finding: PlacedFinding) -> dict[str, str]:
        """Fill-ins of the phrases; their meaning is in phantom_wording."""
        side, both = finding.side, finding.side in ("bilateral", "midline")
        lobe = "the lingula" if finding.region == "lingula" else f"the {side} {finding.region}"
        many = finding.count > 1
        devices = wording.DEVICES_SHORT if self.style != "long" else wording.DEVICES
        device = self.pick(devices[finding.kind]).format(side=side) if finding.kind else ""
        return {
            "side": side,
            "on_side": "both sides" if both else f"the {side}",
            "side_short": {"right": "R", "left": "L"}.get(side, "bilat."),
            "place": "both lungs" if both else lobe,
            "where": _LOBES_SHORT.get((side, finding.region), "bilat."),
            "size": str(finding.size_mm),
            "cm": f"{finding.size_mm / 10:.1f}",
            "degree": finding.severity,
            "volume": _VOLUMES[finding.severity],
            "number": ("a", "two", "three", "four", "five", "six", "seven")[finding.count - 1],
            "number_digit": str(finding.count),
            "s": "s" if many else "",
            "ies": "ies" if many else "y",
            "are": "are" if many else "is",
            "station": finding.region,
            "artery": finding.region,
            "artery_short": _ARTERIES_SHORT.get(finding.region, ""),
            "kind": device,
            "a_kind": device,
        }


def _shorten(draft: _Draft, most: int) -> None:
    """Drop remarks, then negations, then all but one line of the impression, until the limit is met."""
    while draft.num_words() > most:
        if draft.other:
            draft.other.pop()
        elif draft.negated:
            draft.negated.pop()
        elif len(draft.impression) > 1:
            draft.impression.pop()
        else:
            return
