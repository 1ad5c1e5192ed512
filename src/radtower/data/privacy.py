"""What must not leave a hospital, searched for in texts and ids: patterns only, so a floor and no proof.

Kinds follow the identifiers of HIPAA's Safe Harbor rule (45 CFR 164.514) that a report can hold and a pattern
can find. Nothing here returns, raises or logs what was matched: counts, kinds and ids of reports only.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|"
    r"Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?|JAN(?:UARY)?|FEB(?:RUARY)?|MAR(?:CH)?|APR(?:IL)?|MAY|JUNE?|JULY?|"
    r"AUG(?:UST)?|SEPT?(?:EMBER)?|OCT(?:OBER)?|NOV(?:EMBER)?|DEC(?:EMBER)?)"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
_CAPITAL = r"[A-Z\u00c0-\u00de\u0100-\u017f]"  # with accents; the last range has small letters, too
_CAPITALIZED = rf"(?!X{{2,}}\b){_CAPITAL}(?:(?![A-Z])[\w'-])+"
_SURNAME = rf"(?!X{{2,}}\b){_CAPITAL}[\w'-]+"
# What follows "Patient" in headings, and is no name.
_NO_NAME = r"(?!(?:Age|Care|Data|History|Id|Information|Motion|Name|Position(?:ing)?|Rotat\w*|Sex|Status)\b)"
_INITIALS = rf"(?:{_CAPITAL}(?:\.[ -]?| ))*"
_PARTICLES = (
    r"(?i:(?:van|von|vom|zu|zum|zur|der|den|de|del|della|di|da|dos|du|la|le|ten|ter|el|al|bin|ibn)[ -]|d')*"
)
# What follows a title or a label in reports that are all capitals or none, and is no name. MR is a modality,
# and may end a sentence; DR is one, too.
_NO_SURNAME = (
    r"(?!(?i:X{2,}|a|abdom\w*|an|and|angio\w*|are|arthro\w*|as|at|bone|brain|breast|by|can|cardiac|chest|clear"
    r"|clinic\w*|comparison|consider\w*|contrast|correlat\w*|ct|date|enter\w*|evaluat\w*|exam\w*|final|findings?"
    r"|follow\w*|for|from|guid\w*|had|has|he|heart|history|if|images?|imaging|impression|in|indication|is|it"
    r"|left|liver|lungs?|may|mild|moderate|mri?|n|no|none|normal|not|of|on|or|otherwise|patient|pelvis"
    r"|please|prior|protocol|recommend\w*|report\w*|right|scans?|see|sequences?|series|she|signals?|spectro\w*"
    r"|spine|stable|stud(?:y|ies)|systems?|technique|that|the|then|there|these|this|to|unchanged|unknown|unremarkable"
    r"|venogra\w*|was|we|were|when|who|will|with|would)\b)"
)
# What follows mr where it is no title: magnetic resonance, or the regurgitation of a valve.
_NO_MODALITY = (
    r"(?!(?i:\w{4,}(?:graph(?:y|ic|ies)|grams?|scop(?:y|ic))|acqui\w*|add\w*|after|also|although|ankle"
    r"|appear\w*|artifacts?|because|before|but|cannot|cervical|character\w*|cine|coils?|compatib\w*"
    r"|conditional|could|criteria|data|demonstrat\w*|department|depict\w*|detect\w*|did|diffusion|does"
    r"|due|during|elbow|enhanc\w*|face|features?|field|fingerprint\w*|flair|foot|grade|graded|gradient"
    r"|hand|have|head|hip|however|identif\w*|intensit\w*|jets?|joint|kidneys?|knee|level|lumbar"
    r"|machines?|magnet\w*|measur\w*|might|modalit\w*|morpholog\w*|motion|neck|noted|numbers?|only"
    r"|orbits?|pancrea\w*|parameter\w*|perform\w*|perfusion|phase|pituitary|plan\w*|present|prostate"
    r"|pulse|reconstruct\w*|rectal|rectum|regist\w*|requir\w*|reveal\w*|room|safe\w*|scann\w*|screening"
    r"|seen|segment\w*|sella|severity|should|shoulder|show\w*|since|suggest\w*|suite|tesla|than|thor\w*"
    r"|tract\w*|units?|unsafe|uterus|values?|veloc\w*|vessels?|volum\w*|weighted|which|while|without"
    r"|wrist)\b|[\w-]*\d)"  # an id such as mr_s001 is no name
)
_ANY_CASE = rf"{_NO_SURNAME}[^\W\d_][\w'-]+"
_ALL_CAPITALS = rf"{_NO_SURNAME}{_CAPITAL}(?:(?![a-z])[\w'-])+\b"
_NOT_COUNTED = r"(?! ?(?:mm|cm|ml|mg|HU)\b)"

# In this order: what one pattern took, the next does not count again.
_PATTERNS: dict[str, re.Pattern[str]] = {
    "email": re.compile(r"[\w.+-]+@[\w-]+\.\w[\w.-]*"),
    "web address": re.compile(r"(?:https?://|\bwww\.)\S+", re.IGNORECASE),
    "date": re.compile(
        r"(?<![\d.])(?:"
        r"\d{1,2}[./-]\d{1,2}[./-](?:(?:19|20)\d{2}|\d{2})"
        r"|(?:19|20)\d{2}([./-])\d{1,2}\1\d{1,2}"
        r"|(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
        r")(?![\d]|\.\d)"
        rf"|\b{_DAY}(?: of)?[ .-]+{_MONTH}\b\.?"
        rf"|\b{_MONTH}\.?[ -]+(?:{_DAY},?[ -]+)?(?:19|20)\d{{2}}\b"
        rf"|\b{_MONTH}\.? {_DAY}\b(?! ?(?:mm|cm)\b)"
        r"|\b(?i:on|dated|since|from) \d{1,2}/\d{1,2}\b(?!/)"
        rf"|\b(?i:dated) (?:\d{{1,2}}\.\d{{1,2}}\b|{_MONTH}\b)"
        rf"|\b(?i:in|of|since|from) {_MONTH}\b"
        rf"|(?<![\d./-])(?:0?[1-9]|1[0-2])/(?:19|20)\d{{2}}\b(?!/){_NOT_COUNTED}"
        # A month and a year. Without the zero 3.2024 may be a number, and 2024.03 is one.
        rf"|(?<![\w./-])(?:0[1-9]|1[0-2])[.-](?:19|20)\d{{2}}(?![\w-]|\.\d){_NOT_COUNTED}"
        rf"|\b(?i:in|since|from|dated|until) [1-9][.-](?:19|20)\d{{2}}(?![\w-]|\.\d){_NOT_COUNTED}"
        rf"|(?<![\w./-])(?:19|20)\d{{2}}[/-](?:0[1-9]|1[0-2])(?![\w/-]|\.\d){_NOT_COUNTED}"
        # Alone, 3/12 may be a count or a ratio.
        r"|\b(?i:compar(?:ed|ison)(?: (?:with|to))?:?|(?:ct|mri?|exam|study|scan|radiograph) of) "
        r"(?:0?[1-9]|[12]\d|3[01])/(?:0?[1-9]|[12]\d|3[01])\b"
        r"(?!/| (?:of|lesions?|lobes?|lymph|nodes?|nodules?|ribs?|segments?)\b)"
    ),
    "phone number": re.compile(
        r"(?<![\d.-])(?:\+\d{1,3}[ .-]?\(?\d{1,4}\)?(?:[ .-]?\d{2,5}){2,4}|\(\d{3}\) ?\d{3}[ .-]\d{4}"
        rf"|\d{{3}}[.-]\d{{3}}[.-]\d{{4}}|[2-9]\d\d \d{{3}} \d{{4}}{_NOT_COUNTED})(?![\d-])"
        r"|\b(?i:tel(?:ephone)?|phone|fax|pager|extension|ext)\b[.:#]? ?(?i:no\.?|number)?:? ?\d[\d ().-]{2,}"
    ),
    "record number": re.compile(
        r"\b(?i:mrn|medical record(?: number| no\.?)?|accession(?: number| no\.?)?|patient id|ssn"
        r"|case (?:number|no\.?)|hospital (?:number|no\.?))(?: is)?\s*[:#]?\s*[A-Za-z]{0,4}-?\d[\w-]*"
        r"|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"
        r"|(?<![\d.])\d+(?:\.\d+){4,}(?![\d.])"  # a DICOM UID
        r"|(?<![\d.,])\d{6,}(?![.,]\d)"
    ),
    "name": re.compile(
        rf"\b(?:Dr|Prof|Professor|Doctor|Mrs|Mr|Ms|Miss)\b\.? ?(?:(?:med|Dr|Prof)\. ?)*"
        rf"{_INITIALS}{_PARTICLES}{_SURNAME}"
        rf"|\b(?:DR|PROF|MRS)(?:\. ?| {_NO_SURNAME}){_INITIALS}{_PARTICLES}{_SURNAME}"
        rf"|\b(?:dr|prof|mrs)\b\.? (?:[a-z]\. ?)*{_ANY_CASE}"
        rf"|\b[Mm]r {_NO_MODALITY}{_ANY_CASE}|(?<!\d)(?<!\d )\bms\. {_NO_MODALITY}{_ANY_CASE}"
        rf"|\bmr\. {_ANY_CASE}|\bMR\. {_INITIALS}{_ALL_CAPITALS}"
        rf"|(?<!file )(?<!series )(?<!study )\b(?i:name|(?:electronically |e-?)signed"
        rf"|(?:signed|dictated|ordered) by|referring physician|radiologist)[ \t]*:[ \t]*"
        rf"{_INITIALS}{_ANY_CASE}"
        rf"|\b(?i:electronically signed by) {_INITIALS}{_ANY_CASE}"
        rf"|\b(?i:patient(?:'s)? name|referring physician|ordered by|dictated by|signed by|radiologist)"
        rf"(?: is)?\s*[:-]?\s*{_SURNAME}"
        rf"|\b[Pp]atient:?\s+{_NO_NAME}{_CAPITALIZED}"
    ),
    "age over 89": re.compile(
        r"(?<![\d.])(?:9\d|1[0-2]\d)[ -]?(?i:years?\b|yrs?\b|y\.?o\b|y/o\b|y\b)"
        r"|\b(?i:aged?(?: of)?|age:)\s*(?:9\d|1[0-2]\d)\b(?!\.\d)"
        r"|(?<![\d.-])(?<![Tt][Cc] )(?:9\d|1[0-2]\d) ?(?:[MF]|(?i:(?:fe)?male|(?:wo)?man))\b(?![/-])"
        r"|\b(?i:nonagenarian|centenarian)\b"
    ),
}
KINDS = tuple(_PATTERNS)
# What de-identification leaves behind: MIMIC's brackets, and runs of X or underscores.
_PLACEHOLDER = re.compile(r"\[\*\*.*?\*\*\]|\bX{2,}\b|_{2,}")


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
    rest = _PLACEHOLDER.sub(" XX ", text)
    counts: Counter[str] = Counter()
    for kind, pattern in _PATTERNS.items():
        rest, num = pattern.subn(" XX ", rest)
        counts[kind] = num
    return +counts


def search_texts(texts: Iterable[tuple[str, str]]) -> PrivacyReport:
    """Search pairs of report id and text; an id may come several times."""
    counts: Counter[str] = Counter()
    kinds_by_id: dict[str, set[str]] = {}
    num_texts = 0
    for report_id, text in texts:
        found = count_identifiers(text)
        counts += found
        num_texts += 1
        if found:
            kinds_by_id.setdefault(report_id, set()).update(found)
    return PrivacyReport(
        {kind: counts[kind] for kind in KINDS if counts[kind]},
        {name: tuple(kind for kind in KINDS if kind in kinds) for name, kinds in kinds_by_id.items()},
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
        raise ValueError(
            f"the texts must hold no more and no less than {num_accepted} matches of the privacy check, got "
            f"{report.num_matches} in {len(report.kinds_by_id)} of {report.num_texts} texts "
            f"({report.describe()}). Remove what identifies a patient; if every match is harmless, "
            f"accept {report.num_matches}."
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
