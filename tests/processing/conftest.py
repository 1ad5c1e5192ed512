import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

LONG_VRS = ("OB", "OW", "SQ", "UN")
STUDY_UID = "1.2.826.0.1.3680043.2.1125.1"
CT_TAGS = {
    "0008|0060": "CT",
    "0020|000d": STUDY_UID,
    "0010|0010": "Doe^Jane",
    "0010|0020": "MRN-4711",
}
UNDEFINED = 0xFFFFFFFF
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


class Dicom:
    """Encodes DICOM elements by hand: what the reader decodes must not come from the same code."""

    def __init__(self, is_implicit: bool = False, has_lengths: bool = True) -> None:
        self.is_implicit, self.has_lengths = is_implicit, has_lengths

    def element(self, tag: str, vr: str, value: str | bytes) -> bytes:
        content = value.encode() if isinstance(value, str) else value
        content += (b"\0" if vr in ("UI", "OB") else b" ") * (len(content) % 2)
        return self._head(tag, vr, len(content)) + content

    def short(self, tag: str, *values: int) -> bytes:
        return self.element(tag, "US", struct.pack(f"<{len(values)}H", *values))

    def numbers(self, tag: str, *values: float) -> bytes:
        return self.element(tag, "DS", "\\".join(f"{value:g}" for value in values))

    def sequence(self, tag: str, *items: bytes, vr: str = "SQ") -> bytes:
        if self.has_lengths:
            content = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
            return self._head(tag, vr, len(content)) + content
        ends = struct.pack("<HHI", 0xFFFE, 0xE00D, 0), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        content = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED) + item + ends[0] for item in items)
        return self._head(tag, vr, UNDEFINED) + content + ends[1]

    def _head(self, tag: str, vr: str, length: int) -> bytes:
        group, element = int(tag[:4], 16), int(tag[4:], 16)
        if self.is_implicit:
            return struct.pack("<HHI", group, element, length)
        head = struct.pack("<HH2s", group, element, vr.encode())
        return head + (struct.pack("<HI", 0, length) if vr in LONG_VRS else struct.pack("<H", length))


class ScanFiles:
    """Writes scans of every format, good and bad, into one folder."""

    spacing_mm = (3.0, 1.5, 2.0)  # Z, Y, X
    shape = (5, 7, 6)
    uid, study_uid = "1.2.826.0.1.3680043.2.1125.7", STUDY_UID
    encoding = Dicom
    affine = np.diag([-2.0, -1.5, 3.0, 1.0])  # RAS of a straight LPS scan with this spacing

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def hu(shape: tuple[int, ...] = shape) -> np.ndarray:
        """Air with a block of tissue; every voxel has its own value."""
        array = np.arange(np.prod(shape)).reshape(shape) % 3000 - 1000
        array[1:-1, 2:-2, 1:-1] += 1020
        return array.astype(np.int16)

    def oblique_affine(self) -> np.ndarray:
        """RAS affine of a scan whose axes are rotated about all three axes."""
        quaternion = np.array([0.97, 0.1, -0.15, 0.16])
        affine = np.eye(4)
        affine[:3, :3] = nib.quaternions.quat2mat(quaternion / np.linalg.norm(quaternion)) * [2.0, 1.5, 3.0]
        affine[:3, 3] = [5.0, -7.0, 11.0]
        return affine

    def nifti(self, name: str, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
        image = nib.Nifti1Image(
            (self.hu() if array is None else array).T, self.affine if affine is None else affine
        )
        nib.save(image, self.folder / name)
        return self.folder / name

    def patched(self, name: str, offset: int, layout: str, *values: float, path: Path | None = None) -> Path:
        """A NIfTI file with other bytes at ``offset``."""
        raw = bytearray((path or self.nifti("whole.nii")).read_bytes())
        struct.pack_into(layout, raw, offset, *values)
        return self.raw(name, bytes(raw))

    def image(self, name: str, array: np.ndarray) -> Path:
        image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
        image.SetSpacing(self.spacing_mm[::-1])
        sitk.WriteImage(image, str(self.folder / name))
        return self.folder / name

    def npz(self, name: str, **arrays: np.ndarray) -> Path:
        np.savez_compressed(self.folder / name, **(arrays or {"ct": self.hu()}))
        return self.folder / name

    def raw(self, name: str, content: bytes) -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def cut(self, path: Path, num_bytes: int) -> Path:
        """Keep the first ``num_bytes``; without the last ``-num_bytes`` if negative."""
        return self.raw(str(path.relative_to(self.folder)), path.read_bytes()[:num_bytes])

    def dicom_slice(
        self,
        path: Path,
        plane: np.ndarray,
        position_mm: Sequence[float] = (0.0, 0.0, 0.0),
        directions: np.ndarray | None = None,
        **tags: str,
    ) -> Path:
        """One file; tags as ``t0008_0060="MR"``."""
        image = sitk.GetImageFromArray(plane[None], isVector=plane.ndim == 3)
        image.SetSpacing(self.spacing_mm[::-1])
        image.SetOrigin([float(value) for value in position_mm])
        image.SetDirection(np.eye(3).ravel() if directions is None else np.ravel(directions))
        own = {key.replace("_", "|").lstrip("t"): text for key, text in tags.items()}
        for tag, text in (CT_TAGS | {"0020|000e": self.uid} | own).items():
            image.SetMetaData(tag, text)
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(path))
        writer.Execute(image)
        return path

    def dicom_folder(
        self,
        name: str = "ct",
        offsets_mm: Sequence[float] | None = None,
        shift_y_mm: float | Sequence[float] = 0.0,
        array: np.ndarray | None = None,
        **tags: str,
    ) -> Path:
        """One file per slice, named against the order of the positions."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        array = self.hu() if array is None else array
        offsets = self.spacing_mm[0] * np.arange(len(array)) if offsets_mm is None else offsets_mm
        shifts = np.arange(len(array)) * shift_y_mm if np.isscalar(shift_y_mm) else shift_y_mm
        for z, plane in enumerate(array):
            position = (10.0, 20.0 + shifts[z], float(offsets[z]))
            self.dicom_slice(folder / f"{99 - z}.dcm", plane, position, **tags)
        return folder

    def enhanced_ct(
        self,
        name: str,
        positions_mm: Sequence[Sequence[float]] | None = None,
        rescale: Callable[[int], tuple[float, float]] = lambda frame: (1.0, -1024.0),
        stored: np.ndarray | None = None,
        dicom: Dicom | None = None,
        **changes: Any,
    ) -> Path:
        """All slices in one file, with functional groups; ``changes`` leave out or replace parts."""
        dicom = dicom or Dicom()
        series_uid, study_uid = changes.get("uids", (self.uid, self.study_uid))
        stored = (self.hu() + 1024).astype(np.uint16) if stored is None else stored
        positions_mm = (
            [(10.0, 20.0, 3.0 * z) for z in range(len(stored))] if positions_mm is None else positions_mm
        )
        frames = [
            dicom.sequence("00209113", dicom.numbers("00200032", *position))
            + dicom.sequence(
                "00289145",
                dicom.numbers("00281052", rescale(frame)[1]) + dicom.numbers("00281053", rescale(frame)[0]),
            )
            for frame, position in enumerate(positions_mm)
        ][: changes.get("num_groups", len(stored))]
        shared = dicom.sequence(
            "00209116", dicom.numbers("00200037", *changes.get("orientation", (1, 0, 0, 0, 1, 0)))
        )
        if changes.get("has_spacing", True):
            shared += dicom.sequence("00289110", dicom.numbers("00280030", *self.spacing_mm[1:]))
        groups = dicom.sequence("52009229", shared) + dicom.sequence("52009230", *frames)
        private = dicom.sequence("00091001", Dicom(True).element("00091002", "LO", "inner"), vr="UN")
        content = [
            dicom.element("00080008", "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
            dicom.element("00080016", "UI", changes.get("sop_class", ENHANCED_CT)),
            dicom.element("00080018", "UI", "1.2.3.4"),
            dicom.element("00080060", "CS", "CT"),
            private if not dicom.has_lengths else b"",
            dicom.element("00100010", "PN", "Doe^Jane"),
            dicom.element("00100020", "LO", "MRN-4711"),
            dicom.element("0020000d", "UI", study_uid),
            dicom.element("0020000e", "UI", series_uid),
            dicom.short("00280002", 1),
            dicom.element("00280004", "CS", "MONOCHROME2"),
            dicom.element("00280008", "IS", str(len(stored))),
            *(
                dicom.short(f"0028{tag}", value)
                for tag, value in zip(("0010", "0011"), stored.shape[1:], strict=True)
            ),
            *(dicom.short(f"0028{tag}", value) for tag, value in PIXELS.items()),
            groups if changes.get("has_groups", True) else b"",
            dicom.element("7fe00010", "OW", stored.astype("<u2").tobytes()),
        ]
        syntax = "1.2.840.10008.1.2" if dicom.is_implicit else "1.2.840.10008.1.2.1"
        return self.raw(name, _part_10(changes.get("syntax", syntax)) + b"".join(content))

    def zip(self, name: str, members: Mapping[str, bytes]) -> Path:
        with ZipFile(self.folder / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return self.folder / name


PIXELS = {"0100": 16, "0101": 16, "0102": 15, "0103": 0}  # bits allocated, stored, highest, unsigned


def _part_10(syntax: str) -> bytes:
    explicit = Dicom()
    meta = explicit.element("00020001", "OB", b"\0\1") + explicit.element("00020002", "UI", ENHANCED_CT)
    meta += explicit.element("00020003", "UI", "1.2.3.4") + explicit.element("00020010", "UI", syntax)
    length = explicit.element("00020000", "UL", struct.pack("<I", len(meta)))
    return b"\0" * 128 + b"DICM" + length + meta


@pytest.fixture
def scans(tmp_path: Path) -> ScanFiles:
    """Writes scans into ``tmp_path``."""
    return ScanFiles(tmp_path)
