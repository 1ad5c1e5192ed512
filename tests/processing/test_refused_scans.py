"""Every kind of scan that must not be read, made here, and the sentence that says why."""

import struct
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from radtower.processing.reading import archive
from radtower.processing.scan_reference import ScanReference
from radtower.processing.volume_io import read_volume

CORONAL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]).ravel()
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\n{}encoding: raw\nendian: little\n\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\n{}ElementDataFile = LOCAL\n"
VOXELS = b"\0" * 128


def _as(dtype):
    return lambda scans: scans.nifti("a.nii", scans.hu().astype(dtype))


def _with(value, name="a.nii.gz"):
    def make(scans):
        hu = scans.hu().astype(np.float32)
        hu[2, 3, 1] = value
        return scans.nifti(name, hu) if ".nii" in name else scans.image(name, hu)

    return make


def _overshoot(scans):
    stored = np.full((40, 40, 40), 24, np.int16)
    stored[10:30, 10:30, 10:30] = 1064
    stored[0, 0, :5] = -300
    return scans.nifti("a.nii.gz", stored)


def _nan_at_the_end(scans):
    hu = scans.hu((5, 7, 3)).astype(np.float32)  # an odd number of 4-byte voxels
    hu[-1, -1, -1] = np.nan
    return scans.nifti("a.nii.gz", hu)


def _first_half(name):
    def make(scans):
        hu = np.random.default_rng(0).integers(-1000, 100, (20, 20, 20)).astype(np.int16)
        path = scans.nifti(name, hu) if ".nii" in name else scans.image(name, hu)
        return scans.cut(path, path.stat().st_size // 2)

    return make


def _flipped_bit(scans):
    path = scans.nifti("a.nii.gz")
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1  # of the checksum
    return scans.raw("a.nii.gz", bytes(raw))


def _sheared(scans, straight_qform=False):
    sheared = scans.affine.copy()
    sheared[1, 2] = 0.8
    image = nib.Nifti1Image(scans.hu().T, scans.affine if straight_qform else sheared)
    if straight_qform:
        image.set_qform(scans.affine, 1)
        image.set_sform(sheared, 1)
    nib.save(image, scans.folder / "a.nii")
    return scans.folder / "a.nii"


def _dicom(**settings):
    return lambda scans: scans.dicom_folder(**settings)


def _dicom_plus(plane, position=(10.0, 20.0, 15.0), directions=None, **tags):
    def make(scans):
        folder = scans.dicom_folder()
        own = plane(scans.hu()) if callable(plane) else plane
        scans.dicom_slice(folder / "b.dcm", own, position, directions, **tags)
        return folder

    return make


def _two_equal_series(scans, **tags):
    folder = scans.dicom_folder("ct/a")
    scans.dicom_folder("ct/b", t0020_000e=scans.uid + ".2", **tags)
    return folder.parent


def _truncated_dicom(scans):
    folder = scans.dicom_folder()
    scans.cut(folder / "97.dcm", -40)
    return folder


def _replaced(old, new):
    """Another element under the same length: the file stays whole."""

    def make(scans):
        path = scans.dicom_folder(t0028_1053="1", t0028_1052="-1024") / "97.dcm"
        path.write_bytes(path.read_bytes().replace(old, new))
        return path.parent

    return make


def _enhanced(**changes):
    return lambda scans: scans.enhanced_ct("a.dcm", **changes)


def _enhanced_twice(scans):
    (scans.folder / "ct").mkdir()
    scans.enhanced_ct("ct/a.dcm")
    scans.enhanced_ct("ct/b.dcm")
    return scans.folder / "ct"


def _enhanced_implicit(**changes):
    return lambda scans: scans.enhanced_ct("a.dcm", dicom=scans.encoding(is_implicit=True), **changes)


def _enhanced_cut_in_header(scans):
    whole = scans.enhanced_ct("ct.dcm")
    return scans.cut(whole, 700)


def _enhanced_cut_in_pixels(scans):
    return scans.cut(scans.enhanced_ct("a.dcm"), -100)


def _zip_with(name, mode=0):
    def make(scans):
        path = scans.zip("a.zip", {"ok.dcm": b"", name: b"x"})
        if not mode:
            return path
        raw = bytearray(path.read_bytes())
        entry = raw.rindex(b"PK\1\2")
        struct.pack_into("<I", raw, entry + 38, mode << 16)  # external attributes
        raw[entry + 5] = 3  # made on Unix
        return scans.raw("a.zip", bytes(raw))

    return make


def _encrypted_zip(scans):
    raw = bytearray(scans.zip("a.zip", {"a.dcm": b"x"}).read_bytes())
    raw[raw.rindex(b"PK\1\2") + 8] |= 1
    return scans.raw("a.zip", bytes(raw))


def _zip_bomb(scans):
    raw = bytearray(scans.zip("a.zip", {"a.dcm": b"x"}).read_bytes())
    struct.pack_into("<I", raw, raw.rindex(b"PK\1\2") + 24, 4_000_000_000)  # what it claims to unpack to
    once = scans.raw("a.zip", bytes(raw)).read_bytes()
    entry = once[once.rindex(b"PK\1\2") : once.rindex(b"PK\5\6")]
    end = bytearray(once[once.rindex(b"PK\5\6") :])
    struct.pack_into("<HHI", end, 8, 3, 3, 3 * len(entry))
    return scans.raw("a.zip", once[: once.rindex(b"PK\1\2")] + 3 * entry + bytes(end))


def _lying_zip(scans):
    """A member that unpacks to more than it declares."""
    path = scans.zip("a.zip", {"a.dcm": b"x" * 5000})
    raw = path.read_bytes().replace(struct.pack("<I", 5000), struct.pack("<I", 10))
    return scans.raw("a.zip", raw)


def _truncated_zip(scans):
    path = scans.zip("a.zip", {"a.dcm": b"x" * 5000})
    return scans.cut(path, -100)


def _npz(spacing_mm=(0.8, 0.8, 0.8), **arrays):
    return lambda scans: ScanReference(scans.npz("a.npz", **arrays), spacing_mm=spacing_mm)


def _truncated_npz(scans):
    return ScanReference(scans.cut(scans.npz("a.npz"), -60), spacing_mm=(0.8, 0.8, 0.8))


def _nibabel(**parts):
    def make(scans):
        return SimpleNamespace(**({"dataobj": scans.hu().T, "affine": scans.affine} | parts))

    return make


def _referred(**columns):
    return lambda scans: ScanReference(scans.nifti("a.nii"), **columns)


REFUSALS = {
    # What is there at all
    "missing path": (lambda s: s.folder / "no.nii", FileNotFoundError, r"path must exist, got .*no\.nii"),
    "empty folder": (lambda s: s.folder, ValueError, r"with 0 files, none of them a DICOM image"),
    "no DICOM": (lambda s: s.raw("notes.txt", b"").parent, ValueError, "with 1 files, none of them a DICOM"),
    "unknown ending": (lambda s: s.raw("a.txt", b""), ValueError, r"end in one of \.nii\.gz.*got 'a\.txt'"),
    "one DICOM slice": (
        lambda s: s.dicom_folder() / "97.dcm",
        ValueError,
        r"got '97\.dcm' with 1 slice.*pass the folder",
    ),
    "a number": (lambda s: 7, TypeError, "got int"),
    "a dict without content": (lambda s: {"a": 1}, ValueError, r"got keys \['a'\]"),
    "a dict of None": (lambda s: {"path": None, "bytes": None}, ValueError, "got None for both"),
    "bytes that are no scan": (lambda s: {"bytes": b"x" * 400}, ValueError, "must be a NIfTI file"),
    "not NIfTI": (
        lambda s: s.raw("a.nii", b"x" * 400),
        ValueError,
        r"NIfTI file, got other content in .*a\.nii",
    ),
    # Shape and type
    "2-D": (lambda s: s.nifti("a.nii", s.hu()[0]), ValueError, r"got size \(6, 7\)"),
    "one NIfTI slice": (lambda s: s.nifti("a.nii", s.hu()[:1]), ValueError, r"got size \(6, 7, 1\)"),
    "time series": (
        lambda s: s.nifti("a.nii", np.stack([s.hu()] * 2)),
        ValueError,
        r"got size \(6, 7, 5, 2\)",
    ),
    "2-D in NRRD": (lambda s: s.image("a.nrrd", s.hu()[0]), ValueError, r"got size \(6, 7\)"),
    "negative dim": (
        lambda s: s.patched("a.nii", 42, "<h", -6),
        ValueError,
        r"positive sizes, got \[3, -6, 7, 5",
    ),
    "color": (
        lambda s: s.image("a.nrrd", np.zeros((4, 4, 4, 3), np.uint8)),
        ValueError,
        "got 3 values per voxel",
    ),
    "color in NIfTI": (
        lambda s: s.patched("a.nii", 70, "<2h", 128, 24),
        ValueError,
        "got 3 values per voxel",
    ),
    "unknown NIfTI type": (
        lambda s: s.patched("a.nii", 70, "<h", 1),
        ValueError,
        "datatype must be .*got 1 in",
    ),
    "unsigned 8-bit": (
        lambda s: s.image("a.mha", np.ones((4, 4, 4), np.uint8)),
        TypeError,
        "got uint8",
    ),
    "unsigned 8-bit NIfTI": (_as(np.uint8), TypeError, "got uint8"),
    "complex": (_as(np.complex64), TypeError, "got complex64"),
    # Values
    "NaN": (_with(np.nan), ValueError, "must be finite, got nan to nan"),
    "NaN at the end": (_nan_at_the_end, ValueError, "must be finite, got nan"),
    "NaN in float64": (
        lambda s: s.nifti("a.nii", np.where(s.hu() > 0, np.nan, s.hu())),
        ValueError,
        "must be finite, got nan",
    ),
    "NaN in NRRD": (_with(np.nan, "a.nrrd"), ValueError, "must be finite, got nan to nan"),
    "infinity": (_with(np.inf), ValueError, r"must be finite, got -\d+\.0 to inf"),
    "no air": (
        lambda s: s.nifti("a.nii", np.clip(s.hu(), -150, 300)),
        ValueError,
        r"from -150 to \d+, none of them air",
    ),
    "CT-RATE v1 stored values": (
        lambda s: s.nifti("a.nii", s.hu() + np.int16(8192)),
        ValueError,
        r"most common is about 7\d\d\d, which is air if RescaleIntercept -8\d\d\d is missing",
    ),
    "CT-RATE v1 with the wrong table": (
        lambda s: ScanReference(s.nifti("a.nii", s.hu() + np.int16(8192)), rescale=(1, -1024)),
        ValueError,
        r"none of them air.*; values from 6168 to .*none of them air.* \(slope 1 and intercept -1024 of the",
    ),
    "scaled to 0..1": (
        lambda s: s.nifti("a.nii", np.random.default_rng(0).random(s.shape).astype(np.float32)),
        ValueError,
        "none of them air.*windowed or normalized",
    ),
    "HU + 1024": (
        lambda s: s.nifti("a.nii", s.hu() + np.int16(1024)),
        ValueError,
        "values from 24 to .*none",
    ),
    "HU + 1024 with overshoot of a filter": (
        _overshoot,
        ValueError,
        "values from -300 to 1064, none of them air; the most common is about 28",
    ),
    "a voxel of two billion": (_with(2e9), ValueError, r"to 2e\+09, beyond 100000"),
    "a voxel of minus two billion": (_with(-2e9), ValueError, r"from -2e\+09 to .*, beyond 100000"),
    "HU + 500": (
        lambda s: s.nifti("a.nii", np.where(s.hu() > 0, 540, -500).astype(np.int16)),
        ValueError,
        r"air peak near -(49|50)\d instead of -1000",
    ),
    "rescaled twice by -1024": (
        lambda s: s.nifti("a.nii", s.hu() - np.int16(1024)),
        ValueError,
        r"air peak near -20\d\d instead of -1000",
    ),
    "rescaled twice by -8192": (
        lambda s: s.nifti("a.nii", s.hu() - np.int16(8192)),
        ValueError,
        r"air peak near -9\d\d\d instead of -1000",
    ),
    "organs below air": (
        lambda s: s.nifti("a.nii", np.where(s.hu() > 0, s.hu(), s.hu() - 900)),
        ValueError,
        r"air peak near -1[78]\d\d instead of -1000",
    ),
    "only air": (
        lambda s: s.nifti("a.nii", np.full(s.shape, -1000, np.int16)),
        ValueError,
        r"-1000 to -1000 with 0\.00% of tissue above -500",
    ),
    "only padding": (
        lambda s: s.nifti("a.nii", np.full(s.shape, -2000, np.int16)),
        ValueError,
        "nothing but -2000",
    ),
    # Geometry
    "zero spacing": (
        lambda s: s.patched("a.nii", 88, "<f", 0.0),
        ValueError,
        r"positive and finite, got \(2\.0, 1\.5, 0\.0\)",
    ),
    "negative spacing": (
        lambda s: s.patched("a.nii", 84, "<f", -1.5),
        ValueError,
        r"positive and finite, got \(2\.0, -1\.5, 3\.0\)",
    ),
    "NaN spacing": (
        lambda s: s.patched("a.nii", 80, "<f", np.nan),
        ValueError,
        r"positive and finite, got \(nan, 1\.5, 3\.0\)",
    ),
    "spacing above 50 mm": (
        lambda s: s.nifti("a.nii", affine=np.diag([-2.0, -1.5, 60.0, 1.0])),
        ValueError,
        r"0\.01 to 50 mm, got \(2\.0, 1\.5, 60\.0\)",
    ),
    "meters without a unit": (
        lambda s: s.nifti("a.nii", affine=np.diag([-0.002, -0.0015, 0.003, 1.0])),
        ValueError,
        r"0\.01 to 50 mm, got \(0\.002, 0\.0015, 0\.003\)",
    ),
    "spacing above 50 mm in NRRD": (
        lambda s: s.raw("a.nrrd", NRRD.format("spacings: 2 2 51\n").encode() + s.hu((4, 4, 4)).tobytes()),
        ValueError,
        r"0\.01 to 50 mm, got \(2\.0, 2\.0, 51\.0\)",
    ),
    "no spacing in NRRD": (
        lambda s: s.raw("a.nrrd", NRRD.format("").encode() + VOXELS),
        ValueError,
        r"a\.nrrd must state the spacing",
    ),
    "NaN spacing in NRRD": (
        lambda s: s.raw("a.nrrd", NRRD.format("spacings: 2 2 nan\n").encode() + VOXELS),
        ValueError,
        r"got \(2\.0, 2\.0, nan\)",
    ),
    "no spacing in MetaImage": (
        lambda s: s.raw("a.mha", META.format("").encode() + VOXELS),
        ValueError,
        r"a\.mha must state the spacing",
    ),
    "negative spacing in MetaImage": (
        lambda s: s.raw("a.mha", META.format("ElementSpacing = 2 2 -3\n").encode() + VOXELS),
        ValueError,
        r"got \(2\.0, 2\.0, -3\.0\)",
    ),
    "spacing that disagrees with the sform": (
        lambda s: s.patched("a.nii", 88, "<f", 5.0),
        ValueError,
        r"sform of .*a\.nii must describe the same",
    ),
    "sheared sform": (_sheared, ValueError, r"axes of .*a\.nii must be at right angles, got .*0\.258"),
    "sheared sform, straight qform": (
        lambda s: _sheared(s, straight_qform=True),
        ValueError,
        r"same right-angled grid.*0\.8",
    ),
    "unknown orientation": (
        lambda s: s.patched("a.nii", 252, "<2h", 0, 0),
        ValueError,
        "got 0 and 0 in .*left and right are unknown",
    ),
    "sheared nibabel image": (
        lambda s: nib.load(_sheared(s)),
        ValueError,
        "axes of the nibabel image must be at right angles",
    ),
    "nibabel image of zero spacing": (
        _nibabel(affine=np.diag([2.0, 0.0, 3.0, 1.0])),
        ValueError,
        r"got \[2\.0, 0\.0, 3\.0\]",
    ),
    "nibabel image of unknown orientation": (
        lambda s: nib.load(s.patched("a.nii", 252, "<2h", 0, 0)),
        ValueError,
        "got 0 and 0 in the nibabel image: left and right are unknown",
    ),
    "nibabel image in 2-D": (
        _nibabel(dataobj=np.zeros((6, 7), np.int16)),
        ValueError,
        r"nibabel image must be one 3-D volume, got size \(6, 7\)",
    ),
    # Damaged files
    "truncated NIfTI": (_first_half("a.nii"), ValueError, r"whole file, got 8176 of 16352 bytes"),
    "truncated gzip": (_first_half("a.nii.gz"), ValueError, "whole file, got Compressed file ended"),
    "gzip with a wrong checksum": (_flipped_bit, ValueError, r"whole file, got .*Incorrect checksum"),
    "truncated float NIfTI": (
        lambda s: s.cut(s.nifti("a.nii", s.hu().astype(np.float32)), -3),
        ValueError,
        "got 1189 of 1192 bytes",
    ),
    "truncated header": (lambda s: s.cut(s.nifti("a.nii"), 40), ValueError, "got 40 of 348 header bytes"),
    "truncated NRRD": (_first_half("a.nrrd"), ValueError, r"got .*a\.nrrd:.*truncated"),
    "truncated MetaImage": (_first_half("a.mha"), ValueError, r"got .*a\.mha:.*truncated"),
    # DICOM
    "truncated DICOM": (_truncated_dicom, ValueError, r"truncated file 97\.dcm"),
    "not CT": (_dicom(t0008_0060="MR"), ValueError, "must hold a CT, got modality 'MR'"),
    "a series of one slice": (
        lambda s: s.dicom_folder(array=s.hu()[:1]),
        ValueError,
        "got 1 slice in the series",
    ),
    "missing slices": (
        _dicom(offsets_mm=[0, 3, 6, 15, 18]),
        ValueError,
        r"gaps for 2 slices of 3\.00 mm, the first between 6\.00 and 15\.00 mm",
    ),
    "uneven slices": (_dicom(offsets_mm=[0, 3, 6, 8, 11]), ValueError, r"gaps from 2\.00 to 3\.00 mm"),
    "repeated slices": (
        _dicom(offsets_mm=[0, 3, 3, 6, 9]),
        ValueError,
        r"got 1 repeated, the first at 3\.00",
    ),
    "slices 60 mm apart": (
        _dicom(offsets_mm=[0, 60, 120, 180, 240]),
        ValueError,
        r"0\.01 to 50 mm, got \(2\.0, 1\.5, 60\.0\)",
    ),
    "two series that fit equally well": (
        _two_equal_series,
        ValueError,
        r"got 2 that fit equally well among 2: .*\.7 \(CT, 5 slices of 3\.00 mm\); .*\.7\.2 \(CT",
    ),
    "two studies": (
        lambda s: _two_equal_series(s, t0020_000d="1.2"),
        ValueError,
        r"one study, got 2: .*\.7 \(CT, 5 slices of 3\.00 mm\); .*\.7\.2 \(CT",
    ),
    "gantry tilt that changes": (
        _dicom(shift_y_mm=[0.0, 1.0, 2.0, 6.0, 10.0]),
        ValueError,
        r"drift that bends by 3\.0 mm \(gantry tilt 39\.8 degrees on average\)",
    ),
    "mixed orientations": (
        _dicom_plus(lambda hu: hu[0], directions=CORONAL),
        ValueError,
        r"share one orientation, got .* in b\.dcm",
    ),
    "mixed sizes": (
        _dicom_plus(lambda hu: hu[0, :-1]),
        ValueError,
        r"one grid .*got \(6, 6, 2\.0, 1\.5\) in b\.dcm",
    ),
    "a color slice": (
        _dicom_plus(np.zeros((7, 6, 3), np.uint8)),
        ValueError,
        r"got 3 samples per pixel in b\.dcm",
    ),
    "a slice without a position": (
        _replaced(b"\x20\x00\x32\x00", b"\x20\x00\x33\x00"),
        ValueError,
        r"ImagePositionPatient.*got none in 97\.dcm",
    ),
    "a slice whose position is no number": (
        _replaced(b"10\\20\\6", b"10\\20\\x"),
        ValueError,
        r"ImagePositionPatient.*got none in 97\.dcm",
    ),
    "a slice with a slope of zero": (
        _replaced(b"\x28\x00\x53\x10\x02\x00\x00\x001 ", b"\x28\x00\x53\x10\x02\x00\x00\x000 "),
        ValueError,
        "RescaleSlope must not be 0, got 0",
    ),
    "frames that are not CT": (
        _enhanced(sop_class="1.2.840.10008.5.1.4.1.1.7.3"),
        ValueError,
        r"Enhanced CT, got 5 frames of another kind in a\.dcm",
    ),
    "frames without positions": (_enhanced(has_groups=False), ValueError, r"no functional groups in a\.dcm"),
    "frames without a spacing": (_enhanced(has_spacing=False), ValueError, r"none in frame 0 of a\.dcm"),
    "fewer positions than frames": (_enhanced(num_groups=4), ValueError, r"got 4 for 5 frames in a\.dcm"),
    "a missing frame": (
        _enhanced(positions_mm=[(0, 0, z) for z in (0, 3, 9, 12, 15)]),
        ValueError,
        r"gaps for 1 slices of 3\.00 mm",
    ),
    "two files of frames": (_enhanced_twice, ValueError, "must be one file, got 2 files"),
    "big-endian frames": (
        lambda s: s.raw("a.dcm", s.enhanced_ct("b.dcm").read_bytes().replace(b".1.2.1\0", b".1.2.2\0")),
        ValueError,
        "a.dcm",
    ),
    "frames cut off in the header": (_enhanced_cut_in_header, ValueError, r"ct\.dcm"),
    "frames cut off in the pixels": (_enhanced_cut_in_pixels, ValueError, r"a\.dcm"),
    # Voxels in files of their own
    "a MetaImage header that climbs out": (
        lambda s: s.raw(
            "a.mhd", META.format("ElementSpacing = 2 2 3\n").replace("LOCAL", "../x.raw").encode()
        ),
        ValueError,
        r"data files of .*a\.mhd must lie in its folder, got '\.\.' in the name of file 0",
    ),
    "a MetaImage header with a colon and an absolute path": (
        lambda s: s.raw("a.mha", META.format("").replace("= LOCAL", ": /etc/passwd").encode()),
        ValueError,
        r"must lie in its folder, got '\\\\' in the name of file 0",
    ),
    "a MetaImage list that climbs out": (
        lambda s: s.raw("a.mhd", META.format("").replace("LOCAL", "LIST\na.raw\nb/../../c.raw").encode()),
        ValueError,
        r"must lie in its folder, got '\.\.' in the name of file 1",
    ),
    "an NRRD header that climbs out": (
        lambda s: s.raw("a.nrrd", NRRD.format("data file: ../x%02d.raw 1 9 1\n").encode()),
        ValueError,
        r"data files of .*a\.nrrd must lie in its folder, got '\.\.' in the name of file 0",
    ),
    # Archives
    "a zip that climbs out": (_zip_with("../evil.dcm"), ValueError, r"got '\.\.' in the name of member 1"),
    "a zip with an absolute path": (
        _zip_with("/tmp/evil.dcm"),
        ValueError,
        r"got '.*' in the name of member 1",
    ),
    "a zip with a Windows drive": (
        _zip_with("C:\\evil.dcm"),
        ValueError,
        r"got 'C:.*' in the name of member 1",
    ),
    "a zip with a link": (
        _zip_with("link", mode=0o120777),
        ValueError,
        "link or an encrypted file as member 1",
    ),
    "an encrypted zip": (_encrypted_zip, ValueError, "link or an encrypted file as member 0"),
    "a zip bomb": (_zip_bomb, ValueError, r"at most 8 GB in 100000 files, got 12 GB in 3"),
    "a zip that lies about sizes": (_lying_zip, ValueError, r"whole file, got .* in .*a\.zip"),
    "a truncated zip": (_truncated_zip, ValueError, r"whole file, got File is not a zip file in .*a\.zip"),
    "a zip without DICOM": (
        lambda s: s.zip("a.zip", {"a.txt": b"x"}),
        ValueError,
        r"got .*a\.zip with 1 files, none",
    ),
    # npz
    "npz without a spacing": (_npz(None), ValueError, r"spacing_mm must be given.*got None for .*a\.npz"),
    "npz without ct": (
        _npz(arr_0=np.zeros(3)),
        ValueError,
        r"must hold the array 'ct', got \['arr_0\.npy'\]",
    ),
    "npz of objects": (
        _npz(ct=np.array([{}] * 2)),
        ValueError,
        "got Python objects, which are never unpickled",
    ),
    "npz in 2-D": (_npz(ct=np.zeros((4, 5), np.int16)), ValueError, r"got size \(5, 4\)"),
    "npz scaled to HU / 1000": (
        _npz(ct=np.linspace(-1, 1, 64).reshape(4, 4, 4)),
        ValueError,
        "none of them air",
    ),
    "truncated npz": (_truncated_npz, ValueError, r"whole file, got .* in .*a\.npz"),
    "npz with an implausible spacing": (
        _npz((80.0, 0.8, 0.8)),
        ValueError,
        r"got \(0\.8, 0\.8, 80\.0\) .*the table",
    ),
    # Tables
    "a slope of zero in the table": (_referred(rescale=(0, -1024)), ValueError, r"not 0.*got \(0, -1024\)"),
    "a NaN in the table": (_referred(rescale=(1, np.nan)), ValueError, r"finite slope.*got \(1, nan\)"),
    "npz with two spacings": (_npz((0.8, 0.7)), ValueError, r"3 numbers \(Z, Y, X\), got \(0\.8, 0\.7\) for"),
    "npz with zero spacing": (_npz((0, 0.8, 0.8)), ValueError, r"got \(0\.8, 0\.8, 0\).*the table"),
    "two spacings in the table": (
        _referred(spacing_mm=(0.8, 0.7)),
        ValueError,
        r"3 numbers \(Z, Y, X\), got \(0\.8, 0\.7\)\. Correct the table",
    ),
    "zero spacing in the table": (_referred(spacing_mm=(0, 1, 1)), ValueError, r"got \(1, 1, 0\).*the table"),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refuses(make, error, message, scans, capfd):
    source = make(scans)
    capfd.readouterr()
    with pytest.raises(error, match=message) as refusal:
        read_volume(source)
    assert "Doe" not in str(refusal.value)
    assert "4711" not in str(refusal.value)
    assert "WARNING" not in capfd.readouterr().err


SCANS_OF_ONE_MEGABYTE = {
    "NIfTI": lambda s: s.nifti("a.nii.gz", s.hu((50, 100, 100))),
    "NRRD": lambda s: s.image("a.nrrd", s.hu((50, 100, 100))),
    "MetaImage": lambda s: s.image("a.mha", s.hu((50, 100, 100))),
    "DICOM": lambda s: s.dicom_folder(array=s.hu((5, 400, 250))),
    "npz": lambda s: ScanReference(s.npz("a.npz", ct=s.hu((50, 100, 100))), spacing_mm=(1, 1, 1)),
    "nibabel": lambda s: nib.Nifti1Image(s.hu((50, 100, 100)).T, s.affine),
}


@pytest.mark.parametrize("make", SCANS_OF_ONE_MEGABYTE.values(), ids=SCANS_OF_ONE_MEGABYTE)
def test_refuses_a_scan_above_the_memory_limit(make, scans):
    scan = make(scans)
    with pytest.raises(ValueError, match=r"limit of 0\.0009 GB, got 0\.001 GB for .* voxels of 2 bytes"):
        read_volume(scan, memory_limit_gb=0.0009)
    assert read_volume(scan, memory_limit_gb=0.0011).array_hu.size == 500_000


def test_the_memory_limit_is_judged_before_voxels_are_read(scans):
    """The header claims 32 GB, the file has a few bytes of them: a later check would find it truncated."""
    path = scans.patched("a.nii", 42, "<3h", 32_000, 25_000, 20)
    with pytest.raises(
        ValueError, match=r"limit of 8 GB, got 32 GB for 32000 x 25000 x 20 voxels of 2 bytes"
    ):
        read_volume(path)


def test_an_archive_above_the_memory_limit_is_not_unpacked(scans):
    path = scans.zip("a.zip", {"a.dcm": b"x" * 20_000})
    with pytest.raises(ValueError, match=r"at most 1e-05 GB in 100000 files, got 2e-05 GB in 1"):
        read_volume(path, memory_limit_gb=1e-5)


def test_an_archive_of_too_many_files_is_not_unpacked(scans, monkeypatch):
    path = scans.zip("a.zip", {"1": b"", "2": b"", "3": b""})
    monkeypatch.setattr(archive, "MAX_MEMBERS", 2)
    with pytest.raises(ValueError, match=r"at most 8 GB in 2 files, got 0 GB in 3"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd"])
def test_refuses_a_series_for_a_file(scans, name):
    path = scans.nifti(name) if ".nii" in name else scans.image(name, scans.hu())
    with pytest.raises(ValueError, match=rf"series_uid must be None for a file, got '{scans.uid}'"):
        read_volume(path, series_uid=scans.uid)


def test_refuses_two_series_uids(scans):
    reference = ScanReference(scans.dicom_folder(), series_uid=scans.uid)
    with pytest.raises(ValueError, match=r"None beside a ScanReference, got '9\.9'"):
        read_volume(reference, series_uid="9.9")


def test_refuses_a_series_that_is_not_there(scans):
    with pytest.raises(
        ValueError, match=rf"got '9\.9'. Pick one of: {scans.uid} \(CT, 5 slices of 3\.00 mm\)"
    ):
        read_volume(scans.dicom_folder(), series_uid="9.9")


def test_simpleitk_keeps_its_warnings_for_others(scans):
    sitk.ProcessObject.SetGlobalWarningDisplay(True)
    read_volume(scans.dicom_folder())
    assert sitk.ProcessObject.GetGlobalWarningDisplay()
