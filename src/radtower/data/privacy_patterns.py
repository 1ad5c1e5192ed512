"""Patterns of what identifies a patient, one per kind; searched for by ``privacy.py``.

Kinds follow the identifiers of HIPAA's Safe Harbor rule (45 CFR 164.514) that a text can hold and a pattern
can find. Not among them: names without a title or label, places smaller than a state, faces, fingerprints.
"""

import re

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
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_NUMBER = r"(?: is)?\s*[:#]?\s*(?=[\w-]*\d)[\w-]{4,}(?: \d{2,})*"

# In this order: what one pattern took, the next does not count again.
PATTERNS: dict[str, re.Pattern[str]] = {
    "email": re.compile(r"[\w.+-]+@[\w-]+\.\w[\w.-]*"),
    "web address": re.compile(r"(?:https?://|\bwww\.)\S+", re.IGNORECASE),
    "IP address": re.compile(
        rf"(?<![\w.])(?<!ersion )(?:{_OCTET}\.){{3}}{_OCTET}(?![\w]|\.\d)"
        r"|(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}(?![\w:])"
    ),
    "date": re.compile(
        r"(?<![\d.])(?:"
        r"\d{1,2}[./-]\d{1,2}[./-](?:(?:19|20)\d{2}|\d{2})"
        r"|(?:19|20)\d{2}([./-])\d{1,2}\1\d{1,2}"
        r"|(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
        rf")(?![\d]|\.\d){_NOT_COUNTED}"
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
    "address": re.compile(
        rf"\b\d{{1,5}}[A-Za-z]?,? (?:[NSEW]\.? )?(?:(?:{_CAPITAL}[a-z'-]+|\d+(?:st|nd|rd|th)) ){{1,3}}"
        r"(?:Street|St\b\.?|Avenue|Ave\b\.?|Road|Rd\b\.?|Boulevard|Blvd\b\.?|Lane|Drive|Court|Square|Highway"
        r"|Parkway|Terrace)\b"
        rf"|\b\d{{1,5}} (?:(?!SERIES\b){_CAPITAL}{{2,}} ){{1,3}}(?:STREET|AVENUE|ROAD|BOULEVARD|LANE|DRIVE)\b"
        rf"|\b{_CAPITAL}[\w-]+(?:stra(?:ss|\u00df)e|str\.|allee|gasse|platz) \d{{1,4}}[a-z]?\b"
        r"|\b[Pp]\.? ?[Oo]\.? ?(?i:box) \d+"
        r"|, (?:A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]"
        r"|T[NX]|UT|V[AT]|W[AIVY]) \d{5}(?:-\d{4})?\b"
        r"|\b(?i:zip(?: ?code)?|post(?:al )?code)\b:? ?(?=[A-Z\d -]*\d)[A-Z\d][A-Z\d-]{2,}(?: \d[A-Z]{2})?\b"
        r"|\b(?i:(?:home |street |mailing |patient )address)[ \t]*:[ \t]*\w+"
    ),
    "vehicle number": re.compile(
        r"\b(?i:(?:licen[sc]e|registration|number) plate(?: number| no\.?)?(?: is)?)\s*[:#]?\s*"
        r"(?=[A-Z\d -]*\d)[A-Z\d][A-Z\d-]+(?: [A-Z]*\d[A-Z\d]*)?\b"
        r"|\b(?i:vin|vehicle identification number)\s*[:#]?\s*[A-HJ-NPR-Z\d]{17}\b"
    ),
    "device number": re.compile(
        rf"\b(?i:serial (?:number|no\.?|#)|s/n|device (?:id|identifier|number)|udi|lot (?:number|no\.?))"
        rf"{_NUMBER}"
        r"|(?<![\w:-])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}(?![\w:-])"  # of a network card
    ),
    "account number": re.compile(
        rf"\b(?i:(?:account|acct\.?|(?:health )?plan|member(?:ship)?|policy|insurance|beneficiary|subscriber"
        rf"|nhs|medicare|medicaid|certificate|(?:driver'?s? )?licen[sc]e) (?:number|no\.?|id|#)|iban|passport"
        rf"|driver'?s licen[sc]e){_NUMBER}"
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
        rf"|\b(?i:attending(?: physician)?|(?:report|review|transcrib|interpret|approv|verifi)(?:ed)? by"
        rf"|read by|next of kin|emergency contact|mother|father|husband|wife|spouse)[ \t]*:[ \t]*"
        rf"{_INITIALS}{_ANY_CASE}"
        rf"|\b[Pp]atient:?\s+{_NO_NAME}{_CAPITALIZED}"
        rf"|\b(?:{_CAPITAL}[\w'-]*\.? ){{1,2}}{_NO_SURNAME}{_SURNAME},? (?:M\.D\b\.?|MD\b|D\.O\.|FRCR\b)"
        rf"|\b{_CAPITAL}[\w'-]+\^{_CAPITAL}?[\w'-]*"  # as DICOM writes it
    ),
    "age over 89": re.compile(
        r"(?<![\d.])(?:9\d|1[0-2]\d)[ -]?(?i:years?\b|yrs?\b|y\.?o\b|y/o\b|y\b)"
        r"|\b(?i:aged?(?: of)?|age:)\s*(?:9\d|1[0-2]\d)\b(?!\.\d)"
        r"|(?<![\d.-])(?<![Tt][Cc] )(?:9\d|1[0-2]\d) ?(?:[MF]|(?i:(?:fe)?male|(?:wo)?man))\b(?![/-])"
        r"|\b(?i:nonagenarian|centenarian)\b"
    ),
}
# What de-identification leaves behind: MIMIC's brackets, and runs of X or underscores.
PLACEHOLDER = re.compile(r"\[\*\*.*?\*\*\]|\bX{2,}\b|_{2,}")
