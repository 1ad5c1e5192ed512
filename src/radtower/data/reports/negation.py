"""Flip one statement of a sentence from absent to present or back, within the scope of its negation.

Rules, and not a parser: each is a pattern whose every match gives one flipped sentence. What they do not know
they leave alone; ``flips`` of a sentence may be empty.
"""

import re
from collections.abc import Iterator

from radtower.data.reports.sentences import capitalized, uncapitalized, with_article

BE = r"(?:is|are|was|were)"
SEEN = (
    r"(?:seen|observed|noted|identified|detected|present|visuali[sz]ed|demonstrated|encountered|found"
    r"|distinguished|evident)"
)
_NORMAL = r"(?:normal|clear|open|intact|natural|preserved|midline|patent)"
_DEFECT = (
    r"(?:enlarged|calcified|tortuous|hyperexpanded|hyperinflated|elevated|dilated|ectatic|prominent|blunted"
    r"|widened|displaced|flattened|thickened|narrowed|obliterated)"
)
_DEGREE = r"(?:(?:very|mildly|moderately|severely|markedly|slightly|minimally|somewhat|diffusely) )?"
# What looks like a negation and is none, or is a change over time, which is another kind.
PSEUDO_NEGATION = re.compile(
    r"\b(?:no|not|without) (?:(?:significant|interval|appreciable|definite|obvious|substantial|gross|other"
    r"|new|recent|further|suspicious|adequate|optimal(?:ly)?) )*"
    r"(?:change|difference|longer|prior|previous|comparison|further|new|other|well|fully|optimal(?:ly)?|included"
    r"|excluded|ruled|evaluated|possible|performed|only|necessarily|differentiated|characterized|given|contrast"
    r"|xxxx)\b",
    re.IGNORECASE,
)
NEGATION_CUE = re.compile(
    r"\b(?:no|not|none|non|without|absent|absence|negative|free|clear|neither|nor|never|cannot|unlikely|excluded?"
    r"|ruled? out|rather than|instead of)\b",
    re.IGNORECASE,
)
HEDGE = re.compile(
    r"\?|\b(?:may|might|could|can|possib\w+|probab\w+|question\w*|suspicio\w+|suspected|suggest\w*|versus|vs"
    r"|likely|perhaps|represent\w*|favor\w*|should|would|cannot|if)\b",
    re.IGNORECASE,
)
SIZE = re.compile(r"\d\s*-?(?:mm|cm)\b", re.IGNORECASE)
_SCOPE_END = re.compile(
    r"[.;:]|,? (?:but|however|although|which|that|with|without|except|other than|and no|or no)\b|, no\b"
)
_QUANTITY = (
    r"(?:(?:an?|the|some|several|multiple|few|many|numerous|scattered|two|three|small|large|tiny|mild|minimal"
    r"|moderate|severe|slight|marked|massive|trace|subtle|extensive|diffuse) )*"
)
_FIRST_QUANTITY = re.compile(
    r"(?:(?:An?|Some|Several|Multiple|Few|Numerous|Scattered|Two|Three) )+", re.IGNORECASE
)
_THERE = re.compile(r"\b(there (?:is|are|was|were|has been|have been)) ", re.IGNORECASE)
_NO = re.compile(r"\b(with no|but no|and no|or no|, no|no) (?=\w)", re.IGNORECASE)
_WITHOUT = re.compile(r"\bwithout (?=\w)", re.IGNORECASE)
_NOT_SEEN = re.compile(rf"\b({BE}|has|have) not (been )?(?=(?:{SEEN}|{_DEFECT}|{_NORMAL})\b)", re.IGNORECASE)
_SEEN_VERB = re.compile(rf"(?<! be) \b({BE}|has been|have been) (?=(?:also |still )?{SEEN}\b)", re.IGNORECASE)
_IS_DEFECT = re.compile(rf"\b({BE}) {_DEGREE}(?={_DEFECT}\b)", re.IGNORECASE)
_IS_NORMAL = re.compile(rf"\b({BE}) (?=(?:{_NORMAL}\b|within normal\b))", re.IGNORECASE)
_WORD_FLIPS = (
    (re.compile(r"\bnegative for\b", re.IGNORECASE), "positive for"),
    (re.compile(r"\bpositive for\b", re.IGNORECASE), "negative for"),
    (re.compile(r"\bare (?:clear|free) of\b", re.IGNORECASE), "show"),
    (re.compile(r"\bis (?:clear|free) of\b", re.IGNORECASE), "shows"),
    (
        re.compile(r"(?<!is )(?<!are )(?<!was )(?<!were )\bwithin normal limits\b"),
        "outside normal limits",
    ),
    (re.compile(r"\b(?<!for )unremarkable\b", re.IGNORECASE), "abnormal"),
    (
        re.compile(
            r"\bnormal(?= (?:heart|cardio|cardiac|mediastin|lung|pulmonary|chest|appear|size|contour|in "
            r"|exam))",
            re.IGNORECASE,
        ),
        "abnormal",
    ),
    (
        re.compile(
            r"\babnormal(?= (?:heart|cardio|cardiac|mediastin|lung|pulmonary|chest|appear|size|contour))",
            re.IGNORECASE,
        ),
        "normal",
    ),
)
_FRAGMENT = re.compile(
    r"(?:(?:bilateral|left|right|basilar|bibasilar|mild|moderate|severe|small|large|minimal|trace|focal|diffuse"
    r"|multiple|several|nonspecific|millimetric|calcified|subsegmental|linear|patchy|thoracic|aortic|hepatic"
    r"|coronary|hiatal|renal|pleural|pericardial|pulmonary|mediastinal|parenchymal|emphysematous|atherosclerotic"
    r"|degenerative|fibrotic|bronchiectatic|lung|rib|upper|lower|lobe|airspace|interstitial|compression) )*"
    r"(?:cardiomegaly|atelectasis|emphysema|effusions?|pneumothorax|pneumonia|edema|opacit(?:y|ies)|nodules?"
    r"|mass|masses|fractures?|consolidations?|granulomas?|scoliosis|kyphosis|hernia|hepatosteatosis|steatosis"
    r"|changes|thickening|lymphadenopathy|atherosclerosis|plaques|calcifications?|cysts?|disease|bronchiectasis"
    r"|fibrosis|osteophytes|infiltrates?|cholelithiasis|nephrolithiasis|splenomegaly|hepatomegaly)"
    r"(?: (?:in|of|at|within|on) [^,;:]*)?\.?",
    re.IGNORECASE,
)


def flips(sentence: str) -> list[str]:
    """Return the sentence with one of its statements negated, or with one negation taken away; all ways."""
    if PSEUDO_NEGATION.search(sentence):
        return []
    made = list(_without_negation(sentence))
    # Nobody measures what is not there.
    if not NEGATION_CUE.search(sentence) and not HEDGE.search(sentence) and not SIZE.search(sentence):
        made += _with_negation(sentence)
    made += _in_other_words(sentence)
    kept = dict.fromkeys(capitalized(text) if sentence[:1].isupper() else text for text in made)
    return [text for text in kept if text.lower() != sentence.lower()]


def _without_negation(sentence: str) -> Iterator[str]:
    for cue in _NO.finditer(sentence):
        word = {"with no": "with ", "but no": "and ", "and no": "and ", "or no": "and ", ", no": ", "}
        yield _affirmed(sentence, cue, word.get(cue[1].lower(), ""))
    for cue in _WITHOUT.finditer(sentence):
        yield _affirmed(sentence, cue, "with ")
    for cue in _NOT_SEEN.finditer(sentence):
        yield f"{sentence[: cue.start()]}{cue[1]} {cue[2] or ''}{sentence[cue.end() :]}"


def _affirmed(sentence: str, cue: re.Match[str], replacement: str) -> str:
    """Take a negation away: "no A or B is seen" -> "A and B are seen"."""
    rest = sentence[cue.end() :]
    end = _SCOPE_END.search(rest)
    scope, after = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    scope = re.sub(r"^(?:any|an?) ", "", scope)
    verb = re.search(rf"\b{BE}\b", scope)
    subject, predicate = (scope[: verb.start()], scope[verb.start() :]) if verb else (scope, "")
    joined = re.sub(r"\b(?:n?or)\b", "and", subject)
    if joined != subject:
        predicate = re.sub(r"^is\b", "are", re.sub(r"^was\b", "were", predicate))
    before = sentence[: cue.start()]
    # A fragment ("No effusion.") stays one; a clause needs its article.
    if joined == subject and (verb or before or replacement) and not re.search(r" (?:and|or) |,", subject):
        joined = with_article(joined)
    text = before + replacement + (joined if before or replacement else capitalized(joined))
    return text + predicate + after


def _with_negation(sentence: str) -> Iterator[str]:
    for found in _THERE.finditer(sentence):
        rest = re.sub(rf"^{_QUANTITY}", "", sentence[found.end() :])
        yield f"{sentence[: found.end()]}no {_any_of(rest)}"
    first = _FIRST_QUANTITY.match(sentence)
    for found in _SEEN_VERB.finditer(sentence):
        if first:
            yield "No " + sentence[first.end() :]
        else:
            yield f"{sentence[: found.end()]}not {sentence[found.end() :]}"
    for found in _IS_DEFECT.finditer(sentence):
        yield f"{sentence[: found.start()]}{found[1]} not {sentence[found.end() :]}"
    if _FRAGMENT.fullmatch(sentence):
        rest = re.sub(rf"^{_QUANTITY}", "", sentence, flags=re.IGNORECASE)
        yield "No " + uncapitalized(_any_of(rest))


def _any_of(text: str) -> str:
    """Turn "A and B" into "A or B" up to the end of the noun phrase."""
    end = re.search(r"[.;:,]| (?:in|of|at|on|with|which|that|is|are|was|were|consistent|from|to) ", text)
    scope, after = (text[: end.start()], text[end.start() :]) if end else (text, "")
    return re.sub(r"\band\b", "or", scope) + after


def _in_other_words(sentence: str) -> Iterator[str]:
    if not NEGATION_CUE.search(re.sub(r"\bclear\b", "", sentence, flags=re.IGNORECASE)):
        for found in _IS_NORMAL.finditer(sentence):
            yield f"{sentence[: found.end()]}not {sentence[found.end() :]}"
    for pattern, replacement in _WORD_FLIPS:
        for found in pattern.finditer(sentence):
            word = capitalized(replacement) if found.group()[0].isupper() else replacement
            yield sentence[: found.start()] + word + sentence[found.end() :]
