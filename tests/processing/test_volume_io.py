import gzip
import os
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from radtower.processing.scan_reference import ScanReference
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, read_volume, write_volume

# Geometry


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_round_trip_keeps_values_and_geometry_of_an_oblique_scan(scans, tmp_path, name, dtype):
    affine = np.diag([-1, -1, 1, 1]) @ scans.oblique_affine()
    array = scans.hu().astype(dtype) + (dtype(0.25) if dtype is np.float32 else dtype(0))
    volume = Volume(array, scans.spacing_mm, affine, "LPS", VolumeSource("phantom", "none"))
    write_volume(volume, tmp_path / name)
    back = read_volume(tmp_path / name)
    np.testing.assert_array_equal(back.array_hu, array)
    assert back.array_hu.dtype == dtype
    np.testing.assert_allclose(back.affine, affine, atol=1e-4)
    assert back.spacing_mm == pytest.approx(scans.spacing_mm, abs=1e-5)
    assert back.source.rescale == "none in the file: stored values are taken as HU"
    assert back.source.warnings == ()


def test_the_written_affine_is_the_one_that_nibabel_reads(scans, tmp_path):
    volume = Volume(
        scans.hu(),
        scans.spacing_mm,
        affine_from_spacing(scans.spacing_mm),
        "LPS",
        VolumeSource("phantom", "none"),
    )
    write_volume(volume, tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, volume.array_hu)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_other_readers_find_an_oblique_scan_where_it_was(scans, name):
    """The far corner of a real-sized grid, to 1e-4 mm: an error of the directions grows with the distance."""
    affine = np.diag([-1, -1, 1, 1]) @ scans.oblique_affine() @ np.diag([0.31, 0.47, 0.2, 1.0])
    affine[:3, 3] = [-231.5, -312.25, 1400.0]
    array = np.full((5, 512, 512), -1000, np.int16)
    array[1:4, 100:400, 100:400] = 40
    spacing_mm = tuple(np.linalg.norm(affine[:3, :3], axis=0)[::-1])
    write_volume(
        Volume(array, spacing_mm, affine, "LPS", VolumeSource("phantom", "none")), scans.folder / name
    )
    corner = np.array([511, 511, 4])
    expected = (affine @ [*corner, 1])[:3]
    image = sitk.ReadImage(str(scans.folder / name))
    by_simpleitk = np.array(image.TransformIndexToPhysicalPoint(corner.tolist())) * [-1, -1, 1]
    np.testing.assert_allclose(by_simpleitk, expected, atol=1e-4)
    np.testing.assert_allclose(
        (read_volume(scans.folder / name).affine @ [*corner, 1])[:3], expected, atol=1e-4
    )
    if ".nii" in name:
        np.testing.assert_allclose(
            (nib.load(scans.folder / name).affine @ [*corner, 1])[:3], expected, atol=1e-4
        )


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PSR", "SRA", "ILP"])
def test_turns_every_orientation_to_lps_without_moving_the_patient(scans, tmp_path, codes):
    lps = nib.Nifti1Image(scans.hu().T, scans.affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(lps.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = lps.as_reoriented(turn)
    assert nib.aff2axcodes(turned.affine) == tuple(codes)
    nib.save(turned, tmp_path / "a.nii.gz")
    for source in (tmp_path / "a.nii.gz", turned):
        volume = read_volume(source)
        np.testing.assert_array_equal(volume.array_hu, scans.hu())
        np.testing.assert_allclose(volume.affine, lps.affine, atol=1e-5)
        assert nib.aff2axcodes(volume.affine) == tuple(volume.orientation) == ("L", "P", "S")
        assert volume.spacing_mm == pytest.approx(scans.spacing_mm)


def test_reads_an_oblique_nibabel_image_like_its_file(scans, tmp_path):
    affine = scans.oblique_affine()
    image = nib.load(scans.nifti("a.nii.gz", affine=affine))
    from_object, from_file = read_volume(image), read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(from_object.array_hu, from_file.array_hu)
    np.testing.assert_allclose(from_object.affine, from_file.affine, atol=1e-4)
    corner = np.array([0, 0, 0, 1])
    where = np.argwhere(from_file.array_hu == scans.hu()[0, 0, 0])[0][::-1]
    np.testing.assert_allclose(from_file.affine @ [*where, 1], affine @ corner, atol=1e-4)


def test_reads_big_endian_voxels(scans, tmp_path):
    big_endian = nib.Nifti1Image(scans.hu().T.astype(">i2"), scans.affine)
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(scans.hu().T, scans.affine, header), tmp_path / "a.nii")
    for source in (big_endian, tmp_path / "a.nii"):
        np.testing.assert_array_equal(read_volume(source).array_hu, scans.hu())


@pytest.mark.parametrize("endianness", ["<", ">"])
def test_reads_nifti_2_of_either_byte_order(scans, tmp_path, endianness):
    affine = scans.oblique_affine()
    nib.save(nib.Nifti1Image(scans.hu().T, affine), tmp_path / "1.nii")
    header = nib.Nifti2Header(endianness=endianness)
    nib.save(nib.Nifti2Image(scans.hu().T, affine, header), tmp_path / "2.nii.gz")
    first, second = read_volume(tmp_path / "1.nii"), read_volume(tmp_path / "2.nii.gz")
    np.testing.assert_array_equal(second.array_hu, first.array_hu)
    np.testing.assert_allclose(second.affine, first.affine, atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_takes_the_qform_where_there_is_no_sform(scans, tmp_path, sign):
    image = nib.Nifti1Image(scans.hu().T, None)
    affine = scans.oblique_affine() @ np.diag([1, 1, sign, 1])
    image.set_qform(affine, 1)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "a.nii")
    assert int(nib.load(tmp_path / "a.nii").header["sform_code"]) == 0
    volume = read_volume(tmp_path / "a.nii")
    corner = np.argwhere(volume.array_hu == scans.hu()[0, 0, 0])[0][::-1]
    np.testing.assert_allclose(volume.affine @ [*corner, 1], [5.0, -7.0, 11.0, 1.0], atol=1e-4)
    np.testing.assert_allclose(volume.affine, read_volume(nib.load(tmp_path / "a.nii")).affine, atol=1e-4)


def test_converts_meters(scans, tmp_path):
    image = nib.Nifti1Image(scans.hu().T, np.diag([-0.002, -0.0015, 0.003, 1.0]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").spacing_mm == pytest.approx(scans.spacing_mm, rel=1e-5)


def test_drops_a_time_axis_of_length_one(scans, tmp_path):
    image = nib.Nifti1Image(scans.hu().T[..., None], scans.affine)
    nib.save(image, tmp_path / "a.nii.gz")
    for source in (image, tmp_path / "a.nii.gz"):
        np.testing.assert_array_equal(read_volume(source).array_hu, scans.hu())


# Other sources


@pytest.mark.parametrize("is_gzip", [True, False])
def test_reads_the_bytes_of_a_datasets_nifti(scans, tmp_path, is_gzip):
    content = scans.nifti("a.nii").read_bytes()
    sample = {"path": None, "bytes": gzip.compress(content) if is_gzip else content}
    np.testing.assert_array_equal(read_volume(sample).array_hu, scans.hu())
    sample = {"path": str(tmp_path / "a.nii"), "bytes": None}
    np.testing.assert_array_equal(read_volume(sample).array_hu, scans.hu())


def test_reads_a_volume_of_rad_chestct(scans):
    volume = read_volume(ScanReference(scans.npz("trn00001.npz"), spacing_mm=(0.8, 0.7, 0.6)))
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    np.testing.assert_allclose(volume.affine, np.diag([-0.6, -0.7, 0.8, 1.0]))
    assert volume.spacing_mm == pytest.approx((0.8, 0.7, 0.6))
    assert volume.source.format == "npz"
    assert volume.source.warnings == ("an npz file states no orientation: (Z, Y, X) is taken as LPS",)


def test_reads_what_a_newer_numpy_saved(scans, tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("ct.npy", "w") as member:
        np.lib.format.write_array(member, scans.hu(), version=(2, 0))
    volume = read_volume(ScanReference(path, spacing_mm=(1, 1, 1)))
    np.testing.assert_array_equal(volume.array_hu, scans.hu())


def test_the_spacing_of_a_table_replaces_that_of_the_file_in_z_y_x_order(scans):
    turned = nib.Nifti1Image(scans.hu().T, scans.affine).as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(scans.affine), nib.orientations.axcodes2ornt("PSR")
        )
    )
    nib.save(turned, scans.folder / "a.nii")
    volume = read_volume(ScanReference(scans.folder / "a.nii", spacing_mm=(2.5, 0.7, 0.6)))
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    assert volume.spacing_mm == pytest.approx((2.5, 0.7, 0.6))
    np.testing.assert_allclose(volume.affine[:3, :3], np.diag([-0.6, -0.7, 2.5]), atol=1e-6)
    assert volume.source.warnings == (
        "spacing (2.5, 0.7, 0.6) mm (Z, Y, X) of the table instead of (3.0, 1.5, 2.0) of the file",
    )


def test_a_table_that_agrees_with_the_file_is_not_worth_a_word(scans):
    volume = read_volume(ScanReference(scans.nifti("a.nii"), spacing_mm=scans.spacing_mm))
    assert volume.source.warnings == ()


def test_warns_of_an_affine_that_was_never_set(scans):
    volume = read_volume(ScanReference(scans.nifti("a.nii", affine=np.eye(4)), spacing_mm=scans.spacing_mm))
    assert volume.spacing_mm == pytest.approx(scans.spacing_mm)
    assert volume.source.warnings[0].startswith("the affine of the file is the identity")


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])], ids=["RAS", "LPS"])
def test_warns_of_the_geometry_that_writers_put_in_where_they_know_none(scans, affine):
    path = scans.nifti("a.nii", affine=affine)
    for source in (path, nib.load(path)):
        (note,) = read_volume(source).source.warnings
        assert note.startswith("the affine of the file is the identity")


def test_reads_a_nibabel_image_of_another_format(scans):
    volume = read_volume(nib.MGHImage(scans.hu().T, scans.affine.astype(np.float32)))
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    generic = nib.spatialimages.SpatialImage(scans.hu().T, scans.affine)
    np.testing.assert_array_equal(read_volume(generic).array_hu, scans.hu())


def test_reads_a_nibabel_image_in_meters_like_its_file(scans):
    image = nib.Nifti1Image(scans.hu().T, scans.affine / [[1000], [1000], [1000], [1]])
    image.header.set_xyzt_units("meter")
    nib.save(image, scans.folder / "a.nii")
    for source in (scans.folder / "a.nii", nib.load(scans.folder / "a.nii")):
        assert read_volume(source).spacing_mm == pytest.approx(scans.spacing_mm, rel=1e-5)


def test_reads_a_half_turn_like_nibabel(scans):
    """The real part of its quaternion is the root of a rounding error."""
    for angles in np.random.default_rng(0).uniform(-np.pi, np.pi, (60, 2)):
        axis = np.array([np.cos(angles[0]) * np.cos(angles[1]), np.sin(angles[0]) * np.cos(angles[1])])
        axis = np.array([*axis, np.sin(angles[1])])
        affine = np.eye(4)
        affine[:3, :3] = (2 * np.outer(axis, axis) - np.eye(3)) * [2.0, 1.5, 3.0]
        affine[:3, 3] = [300.0, -200.0, 100.0]
        image = nib.Nifti1Image(scans.hu().T, affine)
        image.set_qform(affine, 1)
        image.set_sform(None, 0)
        nib.save(image, scans.folder / "a.nii")
        volume, expected = read_volume(scans.folder / "a.nii"), read_volume(nib.load(scans.folder / "a.nii"))
        np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)


def test_a_volume_prints_what_it_is_and_not_its_voxels(scans):
    volume = read_volume(scans.nifti("a.nii"))
    assert repr(volume) == (
        "Volume(shape=(5, 7, 6), spacing_mm=(3.0, 1.5, 2.0), hu=-1000 to 174, orientation='LPS', "
        "source=VolumeSource(format='NIfTI', rescale='none in the file: stored values are taken as HU', "
        "warnings=()))"
    )


def test_reading_leaves_the_array_of_a_nibabel_image_alone(scans):
    image = nib.Nifti1Image(np.ascontiguousarray(scans.hu()).T, scans.affine)
    volume = read_volume(image)
    volume.array_hu[0, 0, 0] = 7
    assert image.dataobj[0, 0, 0] == -1000


def test_refuses_to_write_an_unknown_ending(scans, tmp_path):
    volume = Volume(
        scans.hu(),
        scans.spacing_mm,
        affine_from_spacing(scans.spacing_mm),
        "LPS",
        VolumeSource("phantom", "none"),
    )
    with pytest.raises(ValueError, match=r"got 'a\.png'"):
        write_volume(volume, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"array_hu": np.zeros((5, 7, 6), np.int64)}, TypeError, "int16 or float32, got int64"),
        ({"array_hu": np.zeros((7, 6), np.int16)}, ValueError, r"\(Z, Y, X\), got shape \(7, 6\)"),
        ({"affine": np.eye(3)}, ValueError, r"\(4, 4\), got shape \(3, 3\)"),
        ({"spacing_mm": (2.0, 1.5, 3.0)}, ValueError, r"agree with affine, got \(2\.0, 1\.5, 3\.0\)"),
        ({"spacing_mm": (3.0, 1.5)}, ValueError, r"agree with affine, got \(3\.0, 1\.5\)"),
    ],
)
def test_a_volume_refuses_parts_that_do_not_fit(changes, error, message, scans):
    parts = {
        "array_hu": scans.hu(),
        "spacing_mm": scans.spacing_mm,
        "affine": affine_from_spacing(scans.spacing_mm),
    }
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


def test_a_zip_of_a_real_study_gives_the_scan_of_its_folder(tmp_path):
    """Sub-folders, a structure set, NIfTI copies and texts beside the slices."""
    study = _real("ct_dicom", "ibsi_1_ct_radiomics_phantom")
    archive = shutil.make_archive(str(tmp_path / "study"), "zip", study)
    from_zip, from_series = read_volume(archive), read_volume(study / "dicom" / "image")
    np.testing.assert_array_equal(from_zip.array_hu, from_series.array_hu)
    np.testing.assert_array_equal(from_zip.affine, from_series.affine)


def test_real_studies_are_not_mixed():
    with pytest.raises(
        ValueError, match=r"one study, got 2: .* 79 slices of 3\.99 mm\); .* 60 slices of 3\.00 mm"
    ):
        read_volume(_real("ct_dicom"))


@pytest.mark.parametrize("offset", [1024, 1000, 8192])
def test_a_real_scan_is_rescaled_once_whatever_the_table_says(tmp_path, offset):
    path = _real("ct_nifti", "totalseg_example_ct.nii.gz")
    expected, image = read_volume(path), nib.load(path)
    stored = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.int32) + offset, image.affine)
    nib.save(stored, tmp_path / "stored.nii.gz")
    for source in (path, tmp_path / "stored.nii.gz"):
        volume = read_volume(ScanReference(source, rescale=(1.0, -float(offset))))
        np.testing.assert_array_equal(volume.array_hu, expected.array_hu)


@pytest.mark.parametrize("name", ["totalseg_example_ct.nii.gz", "totalseg_aorta_ct_cropped.nii.gz"])
def test_a_real_scan_agrees_with_nibabel_in_lps(name):
    volume, image = read_volume(_real("ct_nifti", name)), nib.load(_real("ct_nifti", name))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("LPS")
    )
    expected = image.as_reoriented(turn)
    np.testing.assert_array_equal(volume.array_hu, np.maximum(np.asarray(expected.dataobj), -1024).T)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)
