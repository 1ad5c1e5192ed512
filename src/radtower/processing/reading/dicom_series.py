"""Find the DICOM files of a folder and choose the chest CT among its series."""

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from radtower.processing.reading.dicom_header import DicomSlice, SeriesHeader, read_slices
from radtower.processing.reading.dicom_stack import read_stack
from radtower.processing.reading.sitk_image import silent_simpleitk
from radtower.processing.reading.stored_scan import StoredScan

CHEST_WORDS = ("CHEST", "THORA", "LUNG", "TORSO", "TRUNK", "BODY")  # of BodyPartExamined
MIN_RELATIVE_EXTENT = 0.5  # of the longest series; shorter ones are repeats of a part
SAME_SPACING = 1.05
MIN_DICOM_BYTES = 132  # preamble and magic; a shorter file among slices is one that was cut off


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one SeriesInstanceUID."""

    header: SeriesHeader
    slices: list[DicomSlice]
    spacing_mm: float | None  # median distance of slices; None where positions are missing or all the same
    extent_mm: float

    @property
    def words(self) -> str:
        """What a user needs to choose; no free text, which may name the patient."""
        spacing = "" if self.spacing_mm is None else f" of {self.spacing_mm:.2f} mm"
        extra = [part for part in (self.header.body_part, self.header.kernel) if part]
        extra += ["localizer"] if self.header.is_localizer else []
        extra += ["projection"] if self.header.is_projection else []
        details = ", ".join([self.header.modality, f"{len(self.slices)} slices{spacing}", *extra])
        return f"{self.header.uid} ({details})"

    @property
    def is_chest_ct(self) -> bool:
        """Whether nothing in the header speaks against it."""
        part = self.header.body_part
        return (
            self.header.modality == "CT"
            and not self.header.is_localizer
            and not self.header.is_projection
            and all(header.num_samples == 1 for header in self.slices)
            and (not part or any(word in part for word in CHEST_WORDS))
        )


def read_dicom_folder(
    folder: Path, series_uid: str | None, memory_limit_gb: float, name: Path | None = None
) -> StoredScan:
    """Read one CT series of a folder and its sub-folders, as scanners and archives export them.

    Args:
        folder: Searched to the bottom; files that are no DICOM images are left out and counted.
        series_uid: SeriesInstanceUID to pick; None for the only series, or the one thin-slice chest series.
        memory_limit_gb: As in ``read_volume``.
        name: What messages call the scan; None for ``folder``.

    Raises:
        ValueError: If no or several series match, or the slices are not one regular CT stack.
    """
    is_archive = name is not None  # with checksums, and without the names of its members
    name = folder if name is None else name
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with silent_simpleitk():
        slices_by_file = [read_slices(path) for path in files]
    slices = [header for some in slices_by_file for header in some]
    if not slices:
        raise ValueError(
            f"path must be a folder with DICOM slices, got {name} with {len(files)} files, none of them a "
            "DICOM image. Pass the folder that holds the slices, or the file of another format itself."
        )
    if not is_archive:
        _require_no_stumps(
            [path for path, some in zip(files, slices_by_file, strict=True) if not some], slices
        )
    chosen, notes = _choose(_group(slices), series_uid)
    num_left_out = sum(not some for some in slices_by_file)
    if num_left_out:
        notes = (*notes, f"{num_left_out} files of the folder are not DICOM images")
    scan = read_stack(chosen.slices, name, memory_limit_gb)
    return replace(scan, notes=notes + scan.notes)


def read_dicom_file(path: Path, memory_limit_gb: float) -> StoredScan:
    """Read an Enhanced CT, all frames in one file.

    Raises:
        ValueError: If the file holds one slice, or is not an Enhanced CT.
    """
    with silent_simpleitk():
        slices = read_slices(path)
    if len(slices) < 2 and all(header.num_frames == 1 for header in slices):
        raise ValueError(
            f"path must be a multi-frame file or a folder, got {path.name!r} with {len(slices)} slice. "
            "For single slices, pass the folder that holds them."
        )
    return read_stack(slices, path, memory_limit_gb)


def _require_no_stumps(others: list[Path], slices: list[DicomSlice]) -> None:
    """Refuse files that are too short for DICOM and named like slices: without them a scan looks complete."""
    endings = {".dcm", *(header.path.suffix.lower() for header in slices)}
    for path in others:
        is_like_slice = path.suffix.lower() in endings and not path.name.startswith(".")
        if is_like_slice and path.stat().st_size < MIN_DICOM_BYTES:
            raise ValueError(
                f"every slice must be whole, got {path.stat().st_size} bytes in {path.name}. Copy it again."
            )


def _group(slices: list[DicomSlice]) -> list[Series]:
    by_uid = defaultdict(list)
    for header in slices:
        by_uid[header.series.uid].append(header)
    return [_series(own) for _, own in sorted(by_uid.items())]


def _series(slices: list[DicomSlice]) -> Series:
    spacing_mm, extent_mm = None, 0.0
    first = slices[0]
    positions = [header.position_mm for header in slices if header.position_mm is not None]
    if first.directions is not None and len(positions) > 1:
        offsets_mm = np.sort(np.array(positions) @ np.cross(*first.directions))
        gaps_mm = np.diff(offsets_mm)
        extent_mm = float(offsets_mm[-1] - offsets_mm[0])
        if extent_mm > 0:
            spacing_mm = float(np.median(gaps_mm[gaps_mm > 0]))
    return Series(first.series, slices, spacing_mm, extent_mm)


def _choose(series: list[Series], series_uid: str | None) -> tuple[Series, tuple[str, ...]]:
    """Return the series to read, and notes."""
    listing = "; ".join(each.words for each in series)
    if series_uid is not None:
        for each in series:
            if each.header.uid == series_uid:
                return each, ()
        raise ValueError(f"series_uid must be in the folder, got {series_uid!r}. Pick one of: {listing}.")
    if len(series) == 1:
        return series[0], ()
    num_studies = len({each.header.study_uid for each in series})
    if num_studies > 1:
        raise ValueError(
            f"path must hold one study, got {num_studies}: {listing}. Pass the folder of one, or pick one "
            "with series_uid."
        )
    candidates = [each for each in series if each.is_chest_ct]
    # What was computed from another series may be thinner, but holds no more than it.
    originals = [each for each in candidates if not each.header.is_derived]
    candidates = originals or candidates
    longest_mm = max((each.extent_mm for each in candidates), default=0.0)
    candidates = [each for each in candidates if each.extent_mm >= MIN_RELATIVE_EXTENT * longest_mm]
    thinnest_mm = min((each.spacing_mm for each in candidates if each.spacing_mm is not None), default=0.0)
    thinnest = [each for each in candidates if (each.spacing_mm or 0.0) <= SAME_SPACING * thinnest_mm]
    if len(thinnest) == 1:
        return thinnest[0], (
            f"{len(series)} series in the folder, read the thinnest of the chest, {thinnest[0].words}; not "
            + "; ".join(each.words for each in series if each is not thinnest[0]),
        )
    raise ValueError(
        f"path must hold one thin-slice chest series, got {len(thinnest)} that fit equally well among "
        f"{len(series)}: {listing}. Pick one with series_uid."
    )
