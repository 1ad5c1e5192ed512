import gzip
import os
import struct
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, read_volume, write_volume

SPACING_MM = (3.0, 1.5, 2.0)  # Z, Y, X
SHAPE = (5, 7, 6)
OBLIQUE = nib.quaternions.quat2mat(
    np.array([0.97, 0.1, -0.15, 0.16]) / np.linalg.norm([0.97, 0.1, -0.15, 0.16])
)
UID = "1.2.826.0.1.3680043.2.1125.7"


def _scan_hu(shape=SHAPE) -> np.ndarray:
    """Air with a block of tissue; every voxel has its own value."""
    array = np.arange(np.prod(shape)).reshape(shape) - 1000
    array[1:-1, 2:-2, 1:-1] += 1020
    return array.astype(np.int16)


def _nifti(path, array_zyx=None, affine=None, **header):
    array = _scan_hu() if array_zyx is None else array_zyx
    image = nib.Nifti1Image(array.T, np.diag([-2.0, -1.5, 3.0, 1.0]) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def _patched_nifti(path, offset, layout, *values):
    raw = bytearray(_nifti(path.with_name("whole.nii")).read_bytes())
    struct.pack_into(layout, raw, offset, *values)
    path.write_bytes(raw)
    return path


def _image(array, spacing_mm=SPACING_MM):
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    image.SetSpacing(spacing_mm[::-1])
    return image


def _write(path, array, spacing_mm=SPACING_MM):
    sitk.WriteImage(_image(array, spacing_mm), str(path))
    return path


def _dicom_slice(path, plane, position_mm=(0.0, 0.0, 0.0), directions=None, **tags):
    image = sitk.GetImageFromArray(plane[None], isVector=plane.ndim == 3)
    image.SetSpacing((SPACING_MM[2], SPACING_MM[1], SPACING_MM[0]))
    image.SetOrigin(position_mm)
    image.SetDirection(np.eye(3).ravel() if directions is None else directions)
    texts = {"0008|0060": "CT", "0020|000e": UID, "0010|0010": "Doe^Jane", "0010|0020": "MRN-4711"}
    for tag, text in (
        texts | {key.replace("_", "|").lstrip("t"): text for key, text in tags.items()}
    ).items():
        image.SetMetaData(tag, text)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)
    return path


def _dicom_folder(folder, offsets_mm=None, shift_y_mm=0.0, array=None, **tags):
    """One file per slice, named against the order of the positions."""
    folder.mkdir(exist_ok=True)
    array = _scan_hu() if array is None else array
    offsets_mm = SPACING_MM[0] * np.arange(len(array)) if offsets_mm is None else offsets_mm
    for z, (plane, offset_mm) in enumerate(zip(array, offsets_mm, strict=True)):
        _dicom_slice(folder / f"{99 - z}.dcm", plane, (10.0, 20.0 + z * shift_y_mm, float(offset_mm)), **tags)
    return folder


# Geometry


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_round_trip_keeps_values_and_geometry_of_an_oblique_scan(tmp_path, name, dtype):
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ OBLIQUE * SPACING_MM[::-1]
    affine[:3, 3] = [-31.5, 12.25, 400.0]
    array = _scan_hu().astype(dtype) + (dtype(0.25) if dtype is np.float32 else dtype(0))
    volume = Volume(array, SPACING_MM, affine, "LPS", VolumeSource("phantom", "none"))
    write_volume(volume, tmp_path / name)
    back = read_volume(tmp_path / name)
    np.testing.assert_array_equal(back.array_hu, array)
    assert back.array_hu.dtype == dtype
    np.testing.assert_allclose(back.affine, affine, atol=1e-4)
    assert back.spacing_mm == pytest.approx(SPACING_MM, abs=1e-5)
    assert back.source.rescale == "none in the file: stored values are taken as HU"
    assert back.source.warnings == ()


def test_the_written_affine_is_the_one_that_nibabel_reads(tmp_path):
    volume = Volume(
        _scan_hu(), SPACING_MM, affine_from_spacing(SPACING_MM), "LPS", VolumeSource("phantom", "none")
    )
    write_volume(volume, tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, volume.array_hu)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PSR", "SRA", "ILP"])
def test_turns_every_orientation_to_lps_without_moving_the_patient(tmp_path, codes):
    lps = nib.Nifti1Image(_scan_hu().T, np.diag([-2.0, -1.5, 3.0, 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(lps.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = lps.as_reoriented(turn)
    assert nib.aff2axcodes(turned.affine) == tuple(codes)
    nib.save(turned, tmp_path / "a.nii.gz")
    for source in (tmp_path / "a.nii.gz", turned):
        volume = read_volume(source)
        np.testing.assert_array_equal(volume.array_hu, _scan_hu())
        np.testing.assert_allclose(volume.affine, lps.affine, atol=1e-5)
        assert nib.aff2axcodes(volume.affine) == tuple(volume.orientation) == ("L", "P", "S")
        assert volume.spacing_mm == pytest.approx(SPACING_MM)


def test_reads_an_oblique_nibabel_image_like_its_file(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE * [2.0, 1.5, 3.0]
    affine[:3, 3] = [5.0, -7.0, 11.0]
    image = nib.load(_nifti(tmp_path / "a.nii.gz", affine=affine))
    from_object, from_file = read_volume(image), read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(from_object.array_hu, from_file.array_hu)
    np.testing.assert_allclose(from_object.affine, from_file.affine, atol=1e-4)
    corner = np.array([0, 0, 0, 1])
    where = np.argwhere(from_file.array_hu == _scan_hu()[0, 0, 0])[0][::-1]
    np.testing.assert_allclose(from_file.affine @ [*where, 1], affine @ corner, atol=1e-4)


def test_reads_big_endian_voxels(tmp_path):
    big_endian = nib.Nifti1Image(_scan_hu().T.astype(">i2"), np.diag([-2.0, -1.5, 3.0, 1.0]))
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(_scan_hu().T, np.diag([-2.0, -1.5, 3.0, 1.0]), header), tmp_path / "a.nii")
    for source in (big_endian, tmp_path / "a.nii"):
        np.testing.assert_array_equal(read_volume(source).array_hu, _scan_hu())


@pytest.mark.parametrize("endianness", ["<", ">"])
def test_reads_nifti_2_of_either_byte_order(tmp_path, endianness):
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE * [2.0, 1.5, 3.0]
    affine[:3, 3] = [5.0, -7.0, 11.0]
    nib.save(nib.Nifti1Image(_scan_hu().T, affine), tmp_path / "1.nii")
    header = nib.Nifti2Header(endianness=endianness)
    nib.save(nib.Nifti2Image(_scan_hu().T, affine, header), tmp_path / "2.nii.gz")
    first, second = read_volume(tmp_path / "1.nii"), read_volume(tmp_path / "2.nii.gz")
    np.testing.assert_array_equal(second.array_hu, first.array_hu)
    np.testing.assert_allclose(second.affine, first.affine, atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_takes_the_qform_where_there_is_no_sform(tmp_path, sign):
    image = nib.Nifti1Image(_scan_hu().T, None)
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE * [2.0, 1.5, 3.0 * sign]
    affine[:3, 3] = [5.0, -7.0, 11.0]
    image.set_qform(affine, 1)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "a.nii")
    assert int(nib.load(tmp_path / "a.nii").header["sform_code"]) == 0
    volume = read_volume(tmp_path / "a.nii")
    corner = np.argwhere(volume.array_hu == _scan_hu()[0, 0, 0])[0][::-1]
    np.testing.assert_allclose(volume.affine @ [*corner, 1], [5.0, -7.0, 11.0, 1.0], atol=1e-4)
    np.testing.assert_allclose(volume.affine, read_volume(nib.load(tmp_path / "a.nii")).affine, atol=1e-4)


def test_converts_meters(tmp_path):
    image = nib.Nifti1Image(_scan_hu().T, np.diag([-0.002, -0.0015, 0.003, 1.0]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").spacing_mm == pytest.approx(SPACING_MM, rel=1e-5)


def test_drops_a_time_axis_of_length_one(tmp_path):
    image = nib.Nifti1Image(_scan_hu().T[..., None], np.diag([-2.0, -1.5, 3.0, 1.0]))
    nib.save(image, tmp_path / "a.nii.gz")
    for source in (image, tmp_path / "a.nii.gz"):
        np.testing.assert_array_equal(read_volume(source).array_hu, _scan_hu())


# Hounsfield units


def test_applies_the_slope_and_intercept_of_nifti_once(tmp_path):
    stored = (_scan_hu() + 1024).astype(np.int16) * 2
    path = _patched_nifti(tmp_path / "a.nii", 112, "<2f", 0.5, -1024.0)
    raw = path.read_bytes()[:352] + stored.tobytes()
    path.write_bytes(raw)
    for source in (path, nib.load(path)):
        volume = read_volume(source)
        np.testing.assert_array_equal(volume.array_hu, _scan_hu())
        assert volume.array_hu.dtype == np.int16
    assert "slope 0.5 and intercept -1024" in read_volume(path).source.rescale
    assert "applied once by nibabel" in read_volume(nib.load(path)).source.rescale


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, -1024.0), (2.0, -1000.0)])
def test_applies_the_slope_and_intercept_of_dicom_once(tmp_path, slope, intercept):
    scan = (_scan_hu() // 2 * 2).astype(np.int16)
    tags = {"t0028_1053": f"{slope:g}", "t0028_1052": f"{intercept:g}"}
    volume = read_volume(_dicom_folder(tmp_path / "ct", array=scan, **tags))
    np.testing.assert_array_equal(volume.array_hu, scan)
    assert f"slope {slope:g} and intercept {intercept:g}" in volume.source.rescale


def test_applies_the_intercept_of_each_dicom_slice(tmp_path):
    folder = _dicom_folder(tmp_path / "ct", t0028_1053="1", t0028_1052="-1024")
    path = folder / "97.dcm"
    path.write_bytes(path.read_bytes().replace(b"-1024 ", b"-999.5"))
    volume = read_volume(folder)
    np.testing.assert_allclose(volume.array_hu[2], _scan_hu()[2] + 24.5)
    np.testing.assert_allclose(volume.array_hu[3], _scan_hu()[3])
    assert volume.source.rescale.startswith("2 different slopes and intercepts")


@pytest.mark.parametrize("padding", [-2000, -3024, -8192])
def test_turns_padding_into_air_and_says_so(tmp_path, padding):
    scan = _scan_hu()
    scan[:, :2] = padding
    volume = read_volume(_nifti(tmp_path / "a.nii.gz", scan))
    assert (volume.array_hu[:, :2] == -1024).all()
    np.testing.assert_array_equal(volume.array_hu[:, 2:], scan[:, 2:])
    assert volume.source.warnings == (
        f"60 voxels of padding (lowest {padding} HU) set to -1024 HU, which is air",
    )


def test_clips_the_noise_of_air_without_a_warning(tmp_path):
    scan = _scan_hu()
    scan[0, 0, 0] = -1100
    volume = read_volume(_nifti(tmp_path / "a.nii.gz", scan))
    assert volume.array_hu.min() == -1024
    assert volume.source.warnings == ()


def test_narrows_whole_numbers_and_keeps_fractions(tmp_path):
    assert (
        read_volume(_nifti(tmp_path / "a.nii.gz", _scan_hu().astype(np.float32))).array_hu.dtype == np.int16
    )
    assert read_volume(_nifti(tmp_path / "a.nii.gz", _scan_hu().astype(np.int32))).array_hu.dtype == np.int16
    metal = _scan_hu().astype(np.int32)
    metal[2, 3, 3] = 40_000
    assert read_volume(_nifti(tmp_path / "a.nii.gz", metal)).array_hu[2, 3, 3] == 40_000


# Other sources


def test_sorts_dicom_slices_by_position_and_leaves_out_other_files(tmp_path):
    folder = _dicom_folder(tmp_path / "ct")
    (folder / "License.txt").write_text("text")
    volume = read_volume(str(folder))
    np.testing.assert_array_equal(volume.array_hu, _scan_hu())
    assert volume.spacing_mm == pytest.approx(SPACING_MM)
    np.testing.assert_allclose(volume.affine[:3, 3], [-10.0, -20.0, 0.0])
    assert volume.source.format == "DICOM"
    assert volume.source.warnings == ("1 files of the folder are not DICOM images",)


def test_reads_dicom_slices_that_are_not_axial(tmp_path):
    """Coronal: rows run to the left, columns to the feet, slices to the back."""
    folder = tmp_path / "ct"
    folder.mkdir()
    directions = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    for y in range(SHAPE[1]):
        plane = np.ascontiguousarray(_scan_hu()[::-1, y])
        _dicom_slice(folder / f"{y}.dcm", plane, (0.0, 4.0 * y, 0.0), directions.ravel())
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array_hu, _scan_hu())
    assert volume.spacing_mm == pytest.approx((SPACING_MM[1], 4.0, SPACING_MM[2]))


def test_picks_a_series_by_its_uid(tmp_path):
    folder = _dicom_folder(tmp_path / "ct")
    for z in range(3):
        _dicom_slice(folder / f"b{z}.dcm", _scan_hu()[z], (0, 0, 9.0 * z), t0020_000e=UID + ".2")
    with pytest.raises(ValueError, match=rf"got 2: {UID} \(CT, 5 slices\); {UID}\.2 \(CT, 3 slices\)"):
        read_volume(folder)
    assert read_volume(folder, series_uid=UID + ".2").spacing_mm[0] == pytest.approx(9.0)
    with pytest.raises(ValueError, match=r"series_uid must be in the folder, got '9\.9'"):
        read_volume(folder, series_uid="9.9")


@pytest.mark.parametrize("is_gzip", [True, False])
def test_reads_the_bytes_of_a_datasets_nifti(tmp_path, is_gzip):
    content = _nifti(tmp_path / "a.nii").read_bytes()
    sample = {"path": None, "bytes": gzip.compress(content) if is_gzip else content}
    np.testing.assert_array_equal(read_volume(sample).array_hu, _scan_hu())
    sample = {"path": str(tmp_path / "a.nii"), "bytes": None}
    np.testing.assert_array_equal(read_volume(sample).array_hu, _scan_hu())


# Refusals


def _without_air(tmp_path):
    return _nifti(tmp_path / "a.nii", np.clip(_scan_hu(), -150, 300))


def _raw_ctrate_v1(tmp_path):
    return _nifti(tmp_path / "a.nii", _scan_hu() + np.int16(8192))


def _rescaled_twice(tmp_path, offset):
    return _nifti(tmp_path / "a.nii", _scan_hu() - np.int16(offset))


def _with(value):
    def make(tmp_path):
        scan = _scan_hu().astype(np.float32)
        scan[2, 3, 1] = value
        return _nifti(tmp_path / "a.nii.gz", scan)

    return make


def _ending_in_nan():
    scan = _scan_hu((5, 7, 3)).astype(np.float32)  # an odd number of 4-byte voxels
    scan[-1, -1, -1] = np.nan
    return scan


def _first_half(name):
    def make(tmp_path):
        scan = np.random.default_rng(0).integers(-1000, 100, (20, 20, 20)).astype(np.int16)
        whole = _nifti(tmp_path / name, scan) if ".nii" in name else _write(tmp_path / name, scan)
        whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        return whole

    return make


def _cut(path, num_bytes):
    path.write_bytes(path.read_bytes()[:-num_bytes])
    return path


def _cut_to(name, num_bytes):
    def make(tmp_path):
        path = _nifti(tmp_path / name)
        path.write_bytes(path.read_bytes()[:num_bytes])
        return path

    return make


def _text(name, header):
    def make(tmp_path):
        (tmp_path / name).write_bytes(header.encode() + _scan_hu((4, 4, 4)).tobytes())
        return tmp_path / name

    return make


NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\n{}encoding: raw\nendian: little\n\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\n{}ElementDataFile = LOCAL\n"


def _sheared_beside_a_straight_qform(tmp_path):
    image = nib.Nifti1Image(_scan_hu().T, np.diag([-2.0, -1.5, 3.0, 1.0]))
    sheared = image.affine.copy()
    sheared[1, 2] = 0.8
    image.set_qform(image.affine, 1)
    image.set_sform(sheared, 1)
    nib.save(image, tmp_path / "a.nii")
    return tmp_path / "a.nii"


def _sheared(tmp_path):
    affine = np.diag([-2.0, -1.5, 3.0, 1.0])
    affine[1, 2] = 0.8
    return _nifti(tmp_path / "a.nii", affine=affine)


def _sheared_object(tmp_path):
    return nib.load(_sheared(tmp_path))


def _object_with_zero_spacing(tmp_path):
    return SimpleNamespace(dataobj=_scan_hu().T, affine=np.diag([2.0, 0.0, 3.0, 1.0]))


def _no_forms(tmp_path):
    return _patched_nifti(tmp_path / "a.nii", 252, "<2h", 0, 0)


def _folder(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "series").mkdir()
    (tmp_path / "study" / "notes.txt").write_text("text")
    return tmp_path / "study"


def _dicom_with(**settings):
    return lambda tmp_path: _dicom_folder(tmp_path / "ct", **settings)


def _dicom_plus(name, plane, position=(10.0, 20.0, 15.0), directions=None, **tags):
    def make(tmp_path):
        folder = _dicom_folder(tmp_path / "ct")
        _dicom_slice(folder / name, plane, position, directions, **tags)
        return folder

    return make


def _one_slice(tmp_path):
    return _dicom_folder(tmp_path / "ct", array=_scan_hu()[:1])


def _truncated_dicom(tmp_path):
    folder = _dicom_folder(tmp_path / "ct")
    path = folder / "97.dcm"
    path.write_bytes(path.read_bytes()[:-40])
    return folder


def _multi_frame(tmp_path):
    (tmp_path / "ct").mkdir()
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(tmp_path / "ct" / "all.dcm"))
    image = _image(_scan_hu())
    image.SetMetaData("0008|0060", "CT")
    image.SetMetaData("0020|000e", UID)
    writer.Execute(image)
    return tmp_path / "ct"


CORONAL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]).ravel()
REFUSALS = {
    "missing path": (
        lambda tmp_path: tmp_path / "no.nii",
        FileNotFoundError,
        r"path must exist, got .*no\.nii",
    ),
    "empty folder": (lambda tmp_path: tmp_path, ValueError, r"with 0 files.*0 sub-folders"),
    "no DICOM": (_folder, ValueError, r"with 1 files, none of them a DICOM image, and 1 sub-folders"),
    "unknown ending": (_text("a.txt", ""), ValueError, r"must end in one of \.nii\.gz.*got 'a\.txt'"),
    "single DICOM file": (
        lambda tmp_path: _dicom_folder(tmp_path / "ct") / "97.dcm",
        ValueError,
        r"got '97\.dcm'.*pass the folder",
    ),
    "a number": (lambda tmp_path: 7, TypeError, "got int"),
    "a dict without content": (lambda tmp_path: {"a": 1}, ValueError, r"got keys \['a'\]"),
    "a dict of None": (lambda tmp_path: {"path": None, "bytes": None}, ValueError, "got None for both"),
    "bytes that are no scan": (lambda tmp_path: {"bytes": b"x" * 400}, ValueError, "must be a NIfTI file"),
    "2-D": (lambda tmp_path: _nifti(tmp_path / "a.nii", _scan_hu()[0]), ValueError, r"got size \(6, 7\)"),
    "one slice": (
        lambda tmp_path: _nifti(tmp_path / "a.nii", _scan_hu()[:1]),
        ValueError,
        r"got size \(6, 7, 1\)",
    ),
    "time series": (
        lambda tmp_path: _nifti(tmp_path / "a.nii", np.stack([_scan_hu()] * 2)),
        ValueError,
        r"got size \(6, 7, 5, 2\)",
    ),
    "color": (
        lambda tmp_path: _write(tmp_path / "a.nrrd", np.zeros((4, 4, 4, 3), np.uint8)),
        ValueError,
        "got 3 values per voxel",
    ),
    "unsigned 8-bit": (
        lambda tmp_path: _write(tmp_path / "a.mha", np.ones((4, 4, 4), np.uint8)),
        TypeError,
        "got uint8",
    ),
    "NaN": (_with(np.nan), ValueError, "must be finite, got nan to nan"),
    "NaN in float64": (
        lambda tmp_path: _nifti(tmp_path / "a.nii", np.where(_scan_hu() > 0, np.nan, _scan_hu())),
        ValueError,
        "must be finite, got nan",
    ),
    "NaN at the end": (
        lambda tmp_path: _nifti(tmp_path / "a.nii.gz", _ending_in_nan()),
        ValueError,
        "must be finite, got nan",
    ),
    "NaN in NRRD": (
        lambda tmp_path: _write(tmp_path / "a.nrrd", np.where(_scan_hu() > 0, np.nan, _scan_hu())),
        ValueError,
        "must be finite, got nan to nan",
    ),
    "infinity": (_with(np.inf), ValueError, r"must be finite, got -\d+\.0 to inf"),
    "no air": (_without_air, ValueError, r"from -150 to \d+, none of them air"),
    "CT-RATE v1 stored values": (
        _raw_ctrate_v1,
        ValueError,
        r"most common is about 7\d\d\d.*RescaleIntercept -8\d\d\d",
    ),
    "normalized": (
        lambda tmp_path: _nifti(
            tmp_path / "a.nii", np.random.default_rng(0).random(SHAPE).astype(np.float32)
        ),
        ValueError,
        r"none of them air.*windowed or normalized",
    ),
    "rescaled twice by -1024": (
        lambda tmp_path: _rescaled_twice(tmp_path, 1024),
        ValueError,
        r"air peak near -20\d\d instead of -1000",
    ),
    "rescaled twice by -8192": (
        lambda tmp_path: _rescaled_twice(tmp_path, 8192),
        ValueError,
        r"air peak near -9\d\d\d instead of -1000",
    ),
    "organs below air": (
        lambda tmp_path: _nifti(tmp_path / "a.nii", np.where(_scan_hu() > 0, _scan_hu(), _scan_hu() - 900)),
        ValueError,
        r"air peak near -1[78]\d\d instead of -1000",
    ),
    "only air": (
        lambda tmp_path: _nifti(tmp_path / "a.nii", np.full(SHAPE, -1000, np.int16)),
        ValueError,
        r"-1000 to -1000 with 0\.00% of tissue above -500",
    ),
    "zero spacing": (
        lambda tmp_path: _patched_nifti(tmp_path / "a.nii", 88, "<f", 0.0),
        ValueError,
        r"positive and finite, got \(2\.0, 1\.5, 0\.0\)",
    ),
    "negative spacing": (
        lambda tmp_path: _patched_nifti(tmp_path / "a.nii", 84, "<f", -1.5),
        ValueError,
        r"positive and finite, got \(2\.0, -1\.5, 3\.0\)",
    ),
    "NaN spacing": (
        lambda tmp_path: _patched_nifti(tmp_path / "a.nii", 80, "<f", np.nan),
        ValueError,
        r"positive and finite, got \(nan, 1\.5, 3\.0\)",
    ),
    "no spacing in NRRD": (_text("a.nrrd", NRRD.format("")), ValueError, r"a\.nrrd must state the spacing"),
    "NaN spacing in NRRD": (
        _text("a.nrrd", NRRD.format("spacings: 2 2 nan\n")),
        ValueError,
        r"got \(2\.0, 2\.0, nan\)",
    ),
    "no spacing in MetaImage": (
        _text("a.mha", META.format("")),
        ValueError,
        r"a\.mha must state the spacing",
    ),
    "negative spacing in MetaImage": (
        _text("a.mha", META.format("ElementSpacing = 2 2 -3\n")),
        ValueError,
        r"got \(2\.0, 2\.0, -3\.0\)",
    ),
    "spacing that disagrees with the sform": (
        lambda tmp_path: _patched_nifti(tmp_path / "a.nii", 88, "<f", 5.0),
        ValueError,
        r"sform of .*a\.nii must describe the same",
    ),
    "sheared sform": (_sheared, ValueError, r"axes of .*a\.nii must be at right angles, got .*0\.258"),
    "sheared sform, straight qform": (
        _sheared_beside_a_straight_qform,
        ValueError,
        r"same right-angled grid.*0\.8",
    ),
    "sheared nibabel image": (
        _sheared_object,
        ValueError,
        "axes of the nibabel image must be at right angles",
    ),
    "nibabel image of zero spacing": (_object_with_zero_spacing, ValueError, r"got \[2\.0, 0\.0, 3\.0\]"),
    "nibabel image in 2-D": (
        lambda tmp_path: nib.Nifti1Image(_scan_hu()[0].T, np.eye(4)),
        ValueError,
        r"nibabel image must be one 3-D volume, got size \(6, 7\)",
    ),
    "unknown orientation": (_no_forms, ValueError, "got 0 and 0 in .*left and right are unknown"),
    "not NIfTI": (_text("a.nii", "x" * 400), ValueError, "must be a NIfTI file"),
    "truncated NIfTI": (_first_half("a.nii"), ValueError, r"whole file, got 8176 of 16352 bytes"),
    "truncated gzip": (_first_half("a.nii.gz"), ValueError, "whole file, got Compressed file ended"),
    "truncated float NIfTI": (
        lambda tmp_path: _cut(_nifti(tmp_path / "a.nii", _scan_hu().astype(np.float32)), 3),
        ValueError,
        "got 1189 of 1192 bytes",
    ),
    "truncated header": (_cut_to("a.nii", 40), ValueError, "got 40 of 348 header bytes"),
    "truncated NRRD": (_first_half("a.nrrd"), ValueError, r"got .*a\.nrrd:.*truncated"),
    "truncated MetaImage": (_first_half("a.mha"), ValueError, r"got .*a\.mha:.*truncated"),
    "not CT": (_dicom_with(t0008_0060="MR"), ValueError, "must hold a CT, got modality 'MR'"),
    "one DICOM slice": (_one_slice, ValueError, "got 1 slice in the series"),
    "multi-frame DICOM": (_multi_frame, ValueError, r"got 5 frames in all\.dcm"),
    "missing slices": (
        _dicom_with(offsets_mm=[0, 3, 6, 15, 18]),
        ValueError,
        r"gaps for 2 slices of 3\.00 mm, the first between 6\.00 and 15\.00 mm",
    ),
    "uneven slices": (_dicom_with(offsets_mm=[0, 3, 6, 8, 11]), ValueError, r"gaps from 2\.00 to 3\.00 mm"),
    "repeated slices": (
        _dicom_with(offsets_mm=[0, 3, 3, 6, 9]),
        ValueError,
        r"got 1 repeated, the first at 3\.00",
    ),
    "gantry tilt": (
        _dicom_with(shift_y_mm=0.6),
        ValueError,
        r"drift of 2\.4 mm \(gantry tilt 11\.3 degrees\)",
    ),
    "mixed orientations": (
        _dicom_plus("b.dcm", _scan_hu()[0], directions=CORONAL),
        ValueError,
        r"share one orientation, got .* in b\.dcm",
    ),
    "mixed sizes": (
        _dicom_plus("b.dcm", _scan_hu()[0, :-1]),
        ValueError,
        r"one grid .*got \(6, 6, 2\.0, 1\.5\) in b\.dcm",
    ),
    "a color slice": (
        _dicom_plus("b.dcm", np.zeros((*SHAPE[1:], 3), np.uint8)),
        ValueError,
        r"got 3 samples per pixel in b\.dcm",
    ),
    "truncated DICOM": (_truncated_dicom, ValueError, r"truncated file 97\.dcm"),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refuses(make, error, message, tmp_path, capfd):
    source = make(tmp_path)
    capfd.readouterr()
    with pytest.raises(error, match=message) as refusal:
        read_volume(source)
    assert "Doe" not in str(refusal.value)
    assert "4711" not in str(refusal.value)
    assert "WARNING" not in capfd.readouterr().err


def test_refuses_slices_without_a_position(tmp_path):
    folder = _dicom_folder(tmp_path / "ct")
    path = folder / "97.dcm"
    # Another element number under the same length: the tag is gone, the file is whole.
    path.write_bytes(path.read_bytes().replace(b"\x20\x00\x32\x00", b"\x20\x00\x33\x00"))
    with pytest.raises(ValueError, match=r"ImagePositionPatient.*got none in 97\.dcm"):
        read_volume(folder)


def test_refuses_a_series_for_a_file(tmp_path):
    with pytest.raises(ValueError, match=rf"series_uid must be None for a file, got '{UID}'"):
        read_volume(_nifti(tmp_path / "a.nii"), series_uid=UID)


def test_refuses_to_write_an_unknown_ending(tmp_path):
    volume = Volume(
        _scan_hu(), SPACING_MM, affine_from_spacing(SPACING_MM), "LPS", VolumeSource("phantom", "none")
    )
    with pytest.raises(ValueError, match=r"got 'a\.png'"):
        write_volume(volume, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"array_hu": _scan_hu().astype(np.int64)}, TypeError, "int16 or float32, got int64"),
        ({"array_hu": _scan_hu()[0]}, ValueError, r"\(Z, Y, X\), got shape \(7, 6\)"),
        ({"affine": np.eye(3)}, ValueError, r"\(4, 4\), got shape \(3, 3\)"),
        ({"spacing_mm": (2.0, 1.5, 3.0)}, ValueError, r"agree with affine, got \(2\.0, 1\.5, 3\.0\)"),
        ({"spacing_mm": (3.0, 1.5)}, ValueError, r"agree with affine, got \(3\.0, 1\.5\)"),
    ],
)
def test_a_volume_refuses_parts_that_do_not_fit(changes, error, message):
    parts = {"array_hu": _scan_hu(), "spacing_mm": SPACING_MM, "affine": affine_from_spacing(SPACING_MM)}
    with pytest.raises(error, match=message):
        Volume(**(parts | changes), orientation="LPS", source=VolumeSource("phantom", "none"))


# Real scans


def _real(*parts) -> Path:
    if "RADTOWER_REAL_DATA" not in os.environ:
        pytest.skip("set RADTOWER_REAL_DATA to the folder with the real scans")
    return Path(os.environ["RADTOWER_REAL_DATA"]).joinpath(*parts)


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("acil_ct64/dicom", "acil_ct64/ct-64.nrrd"),
        ("ibsi_1_ct_radiomics_phantom/dicom/image", "ibsi_1_ct_radiomics_phantom/nifti/image/phantom.nii.gz"),
    ],
)
def test_dicom_and_its_conversion_give_the_same_real_scan(folder, file):
    dicom, converted = read_volume(_real("ct_dicom", folder)), read_volume(_real("ct_dicom", file))
    np.testing.assert_array_equal(dicom.array_hu, converted.array_hu)
    np.testing.assert_allclose(dicom.affine, converted.affine, atol=1e-3)


@pytest.mark.parametrize("name", ["totalseg_example_ct.nii.gz", "totalseg_aorta_ct_cropped.nii.gz"])
def test_a_real_scan_agrees_with_nibabel_in_lps(name):
    volume, image = read_volume(_real("ct_nifti", name)), nib.load(_real("ct_nifti", name))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("LPS")
    )
    expected = image.as_reoriented(turn)
    np.testing.assert_array_equal(volume.array_hu, np.maximum(np.asarray(expected.dataobj), -1024).T)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)
