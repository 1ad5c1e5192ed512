"""The last look at a folder before it leaves the machine: whatever holds text is searched for identifiers."""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from radtower.data.file_metadata import PICTURE_SUFFIXES, SCAN_SUFFIXES, is_dicom, metadata_fields
from radtower.data.file_texts import VOCABULARIES, Text, UnsearchableError, plain_text, texts_of_file
from radtower.data.privacy import Analyzer, PrivacyReport, merge_reports, search_texts

RECORD_FILE = "privacy.json"
FILE_METADATA = "file metadata"
UNREADABLE = "unreadable file"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_NUMBERS = (".faiss",)  # of our own index: nothing but vectors
_NUM_NAMED = 5
_DATED_FOLDER = ".eval_results"  # its files say when a model was evaluated; the Hub asks for it


def refuse_private_content(
    folder: str | Path,
    *,
    allowed_reason: str | None = None,
    checked: Collection[str] = (),
    analyzers: Sequence[Analyzer] = (),
) -> PrivacyReport:
    """Search a folder, and refuse it if anything in it may identify a patient and nobody has allowed it.

    Where findings are allowed, the reason and their counts are written to ``privacy.json`` in the folder, so
    that they go up with it; otherwise an older ``privacy.json`` is removed.

    Args:
        folder: All of it is to leave the machine.
        allowed_reason: Why findings are harmless, in a sentence that will be public. None allows none.
            Neither DICOM files nor pickles are ever allowed.
        checked: Paths in the folder whose texts were searched already, and judged; their headers are not.
        analyzers: Search each text as well.

    Returns:
        What was found.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there are findings and no reason, the reason is empty or has findings itself, or the
            folder holds DICOM files, pickles or links that lead out of it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder must be a folder, got {folder}. Check the spelling.")
    if allowed_reason is not None:
        _check_reason(allowed_reason, analyzers)
    (folder / RECORD_FILE).unlink(missing_ok=True)
    report = search_folder(folder, checked=checked, analyzers=analyzers)
    if not report.num_matches:
        return report
    if allowed_reason is None:
        raise ValueError(_refusal(report))
    # No places: a public list of them would lead to what is to stay unnoticed.
    record = {"allowed_because": allowed_reason, "counts": dict(report.counts)}
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return report


def refuse_links(folder: str | Path) -> None:
    """Refuse links that lead out of a folder, before a copy of it makes files of them.

    Raises:
        ValueError: If there is one.
    """
    for path in sorted(Path(folder).rglob("*")):
        _refuse_link(path, Path(folder), path.relative_to(folder).as_posix())


def search_folder(
    folder: str | Path, *, checked: Collection[str] = (), analyzers: Sequence[Analyzer] = ()
) -> PrivacyReport:
    """Search every file of a folder; places are paths, with a row where there are rows.

    A file whose path has findings is named by its number in the order of paths instead.

    Raises:
        ValueError: If it holds DICOM files, pickles or links that lead out of it.
    """
    folder = Path(folder)
    reports = []
    for number, path in enumerate(sorted(folder.rglob("*")), start=1):
        place = path.relative_to(folder).as_posix()
        in_name = search_texts([(f"file {number}", plain_text(place.replace("_", " ")))], analyzers)
        name = f"file {number}" if in_name.num_matches else place
        _refuse_link(path, folder, name)
        if path.is_file():
            reports.append(in_name)
            reports.append(_search_file(path, place, name, place in checked, analyzers))
    return merge_reports(*reports)


def _search_file(
    path: Path, place: str, name: str, is_checked: bool, analyzers: Sequence[Analyzer]
) -> PrivacyReport:
    _refuse_outright(path, name)
    if place.lower().endswith((*PICTURE_SUFFIXES, *SCAN_SUFFIXES)):
        return _headers(path, name)
    if is_checked or path.name in VOCABULARIES or path.suffix in _NUMBERS:
        return PrivacyReport()
    try:
        report = search_texts(_searched(texts_of_file(path, name)), analyzers)
    except (UnicodeDecodeError, UnsearchableError):
        return PrivacyReport({UNREADABLE: 1}, {name: (UNREADABLE,)}, 1)
    if place.startswith(f"{_DATED_FOLDER}/"):
        report = _without_dates(report)
    return report


def _searched(texts: Iterator[Text]) -> Iterator[Text]:
    """What of the texts is to be searched; the same text counts once at a place."""
    here, seen = "", set[str]()
    for place, text in texts:
        if place != here:
            here, seen = place, set()
        plain = plain_text(text)
        if plain.strip() and plain not in seen:
            seen.add(plain)
            yield place, plain


def _without_dates(report: PrivacyReport) -> PrivacyReport:
    return PrivacyReport(
        {kind: count for kind, count in report.counts.items() if kind != "date"},
        {
            name: rest
            for name, kinds in report.kinds_by_id.items()
            if (rest := tuple(kind for kind in kinds if kind != "date"))
        },
        report.num_texts,
    )


def _headers(path: Path, name: str) -> PrivacyReport:
    try:
        fields = metadata_fields(path)
    except ValueError:
        return PrivacyReport({UNREADABLE: 1}, {name: (UNREADABLE,)}, 1)
    if not fields:
        return PrivacyReport(num_texts=1)
    return PrivacyReport({FILE_METADATA: len(fields)}, {name: (FILE_METADATA,)}, 1)


def _refuse_outright(path: Path, name: str) -> None:
    if is_dicom(path):
        raise ValueError(
            f"no DICOM file may leave the machine, got {name}: its header names the patient. Convert it with "
            "radtower.processing.volume_io.write_volume, and leave the DICOM file out."
        )
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ValueError(
            f"no pickle may leave the machine, got {name}: it runs code where it is read, and cannot be "
            "searched. Save the weights with safetensors.torch.save_file, and leave the rest out."
        )


def _refuse_link(path: Path, folder: Path, name: str) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"every link must stay in the folder, got {name}, which leads out of it. Copy the file instead."
        )


def _check_reason(reason: str, analyzers: Sequence[Analyzer]) -> None:
    if not reason.strip():
        raise ValueError(
            f"the reason to allow findings must say why they are harmless, got {reason!r}. It is published."
        )
    found = search_texts([("reason", reason)], analyzers)
    if found.num_matches:
        raise ValueError(
            f"the reason to allow findings must hold none itself, got {found.describe()}. It is published: "
            "reword it."
        )


def _refusal(report: PrivacyReport) -> str:
    places = [f"{place} ({', '.join(kinds)})" for place, kinds in report.kinds_by_id.items()]
    more = f" and {len(places) - _NUM_NAMED} more" if len(places) > _NUM_NAMED else ""
    return (
        f"the folder must hold nothing that may identify a patient, got {report.describe()}: "
        f"{'; '.join(places[:_NUM_NAMED])}{more}. Remove it; if all of it is harmless, allow it and say why "
        "(--allow-phi-findings)."
    )
