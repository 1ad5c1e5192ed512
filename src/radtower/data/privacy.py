"""What must not leave a hospital, searched for in texts and ids: patterns only, so a floor and no proof.

Nothing here returns, raises or logs what was matched: counts, kinds and ids of reports only.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from radtower.data.privacy_patterns import PATTERNS, PLACEHOLDER

KINDS = tuple(PATTERNS)
_CELL_LENGTH = 32  # characters of a text that may come again


class Analyzer(Protocol):
    """A further search beside the patterns, such as a model that knows names without a title."""

    def find(self, text: str) -> Iterable[str]:
        """Return the kind of each match in a text, and never the match itself."""
        ...


@dataclass(frozen=True)
class PrivacyReport:
    """What a search found.

    Attributes:
        counts: Matches by kind, over all texts; only kinds that were found.
        kinds_by_id: The kinds found in each report that has any.
        num_texts: Texts searched.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    kinds_by_id: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    num_texts: int = 0

    @property
    def num_matches(self) -> int:
        """Matches of all kinds."""
        return sum(self.counts.values())

    def describe(self) -> str:
        """Return the counts as words, such as ``2 date, 1 name``."""
        return ", ".join(f"{count} {kind}" for kind, count in self.counts.items()) or "none"


def count_identifiers(text: str) -> Counter[str]:
    """Return how many matches of each kind a text has; placeholders such as XXXX and ___ are none."""
    rest = PLACEHOLDER.sub(" XX ", text)
    counts: Counter[str] = Counter()
    for kind, pattern in PATTERNS.items():
        rest, num = pattern.subn(" XX ", rest)
        counts[kind] = num
    return +counts


def search_texts(texts: Iterable[tuple[str, str]], analyzers: Sequence[Analyzer] = ()) -> PrivacyReport:
    """Search pairs of report id and text; an id may come several times.

    Args:
        texts: Id and text.
        analyzers: Search each text as well, whatever the patterns found in it.
    """
    counts: Counter[str] = Counter()
    kinds_by_id: dict[str, set[str]] = {}
    num_texts = 0
    cells: dict[str, Counter[str]] = {}  # a table says the same few words in most of its cells
    for report_id, text in texts:
        known = cells.get(text)
        found = _search(text, analyzers) if known is None else known
        if known is None and len(text) <= _CELL_LENGTH:
            cells[text] = found
        counts += found
        num_texts += 1
        if found:
            kinds_by_id.setdefault(report_id, set()).update(found)
    return _report(counts, kinds_by_id, num_texts)


def _search(text: str, analyzers: Sequence[Analyzer]) -> Counter[str]:
    found = count_identifiers(text)
    for analyzer in analyzers:
        found.update(analyzer.find(text))
    return found


def merge_reports(*reports: PrivacyReport) -> PrivacyReport:
    """Return what several searches found together."""
    counts: Counter[str] = Counter()
    kinds_by_id: dict[str, set[str]] = {}
    for report in reports:
        counts += Counter(report.counts)
        for name, kinds in report.kinds_by_id.items():
            kinds_by_id.setdefault(name, set()).update(kinds)
    return _report(counts, kinds_by_id, sum(report.num_texts for report in reports))


def _report(counts: Counter[str], kinds_by_id: Mapping[str, set[str]], num_texts: int) -> PrivacyReport:
    order = [*KINDS, *sorted(set(counts) - set(KINDS))]
    return PrivacyReport(
        {kind: counts[kind] for kind in order if counts[kind]},
        {name: tuple(kind for kind in order if kind in kinds) for name, kinds in kinds_by_id.items()},
        num_texts,
    )


def search_ids(ids: Iterable[str]) -> PrivacyReport:
    """Search ids for dates, record numbers, DICOM UIDs and the like; names cannot be told from words."""
    # An underscore is a letter to a regular expression: the date in a_20200131_b would have no edges.
    return search_texts((name, name.replace("_", " ")) for name in ids)


def refuse_identifiers(report: PrivacyReport, num_accepted: int = 0) -> None:
    """Refuse texts with matches that nobody has looked at.

    Args:
        report: What was found.
        num_accepted: Matches that a person has judged harmless. Must be exactly the number found, so that
            a judgment of yesterday does not cover what came in today.

    Raises:
        ValueError: If the numbers differ.
    """
    if report.num_matches != num_accepted:
        wanted = f"exactly {num_accepted} matches" if num_accepted else "no match"
        raise ValueError(
            f"the texts must hold {wanted} of the privacy check, got {report.num_matches} in "
            f"{len(report.kinds_by_id)} of {report.num_texts} texts ({report.describe()}). Remove what "
            "identifies a patient; if every match is harmless, accept their number (--accept-phi "
            f"{report.num_matches})."
        )


def refuse_identifying_ids(report: PrivacyReport, is_accepted: bool) -> None:
    """Refuse ids that look like record numbers or dates, unless somebody says that they are public.

    Raises:
        ValueError: If there are such ids and they are not accepted.
    """
    if report.num_matches and not is_accepted:
        raise ValueError(
            f"ids must not look like identifiers of patients, got {len(report.kinds_by_id)} of "
            f"{report.num_texts} that do ({report.describe()}). Replace them by public names, or keep them "
            "if they are public already."
        )
