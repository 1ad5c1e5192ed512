"""Where a scan is, and what only a table beside it knows: series, rescale, spacing."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ScanReference:
    """One scan of a data set, accepted by ``read_volume`` and by the image processor where a path is.

    Attributes:
        path: File or DICOM folder.
        series_uid: SeriesInstanceUID, where a DICOM folder holds several series.
        rescale: (slope, intercept) that a table states for the file, such as CT-RATE's metadata. Applied only
            if the values show that it has not been; None when there is no such table.
        spacing_mm: Voxel size (Z, Y, X) that a table states; it replaces what the file says. None trusts the
            file.
    """

    path: str | Path
    series_uid: str | None = None
    rescale: tuple[float, float] | None = None
    spacing_mm: tuple[float, float, float] | None = None
