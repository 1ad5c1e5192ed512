"""DICOM as scanners export it: sub-folders, several series, archives, all frames in one file."""

import zipfile

import numpy as np
import pytest
import SimpleITK as sitk

from radtower.processing.scan_reference import ScanReference
from radtower.processing.volume_io import read_volume


def test_sorts_slices_by_position_and_leaves_out_other_files(scans):
    folder = scans.dicom_folder()
    (folder / "License.txt").write_text("text")
    volume = read_volume(str(folder))
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    assert volume.spacing_mm == pytest.approx(scans.spacing_mm)
    np.testing.assert_allclose(volume.affine[:3, 3], [-10.0, -20.0, 0.0])
    assert volume.source.format == "DICOM"
    assert volume.source.warnings == ("1 files of the folder are not DICOM images",)


def test_reads_slices_that_are_not_axial(scans):
    """Coronal: rows run to the left, columns to the feet, slices to the back."""
    folder = scans.folder / "ct"
    folder.mkdir()
    directions = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    for y in range(scans.shape[1]):
        plane = np.ascontiguousarray(scans.hu()[::-1, y])
        scans.dicom_slice(folder / f"{y}.dcm", plane, (0.0, 4.0 * y, 0.0), directions)
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    assert volume.spacing_mm == pytest.approx((scans.spacing_mm[1], 4.0, scans.spacing_mm[2]))


def test_finds_the_slices_in_sub_folders(scans):
    folder = scans.dicom_folder("export/PAT/STUDY/S1")
    (folder / "99.dcm").rename(folder.parent / "other.dcm")
    np.testing.assert_array_equal(read_volume(scans.folder / "export").array_hu, scans.hu())


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reads_a_zip_like_its_folder(scans, compression):
    folder = scans.dicom_folder("a/b")
    with zipfile.ZipFile(scans.folder / "a.ZIP", "w", compression) as archive:
        archive.mkdir("study")
        archive.writestr("study/notes.txt", "text")
        for path in folder.iterdir():
            archive.write(path, f"study/series/{path.name}")
    from_zip, from_folder = read_volume(scans.folder / "a.ZIP"), read_volume(folder)
    np.testing.assert_array_equal(from_zip.array_hu, from_folder.array_hu)
    np.testing.assert_array_equal(from_zip.affine, from_folder.affine)
    assert from_zip.source.warnings == ("1 files of the folder are not DICOM images",)
    reference = ScanReference(scans.folder / "a.ZIP", series_uid="9.9")
    with pytest.raises(ValueError, match=rf"got '9\.9'. Pick one of: {scans.uid}"):
        read_volume(reference)


# Several series


def _add_series(scans, uid, num_slices=3, gap_mm=9.0, is_color=False, **tags):
    for z in range(num_slices):
        path = scans.folder / "ct" / f"{uid}_{z}.dcm"
        plane = np.zeros((7, 6, 3), np.uint8) if is_color else scans.hu()[z % 5]
        scans.dicom_slice(path, plane, (0, 0, gap_mm * z), t0020_000e=f"{scans.uid}.{uid}", **tags)


def test_picks_a_series_by_its_uid(scans):
    folder = scans.dicom_folder()
    _add_series(scans, "2")
    assert read_volume(folder, series_uid=f"{scans.uid}.2").spacing_mm[0] == pytest.approx(9.0)
    assert read_volume(ScanReference(folder, series_uid=scans.uid)).spacing_mm[0] == pytest.approx(3.0)


@pytest.mark.parametrize(
    "other",
    [
        {"uid": "2"},  # thicker slices
        {"uid": "3", "gap_mm": 1.0, "num_slices": 4},  # thinner, but of a part
        {"uid": "4", "gap_mm": 1.0, "num_slices": 13, "t0008_0060": "PT"},
        {"uid": "5", "gap_mm": 1.0, "num_slices": 13, "t0008_0008": "ORIGINAL\\PRIMARY\\LOCALIZER"},
        {"uid": "6", "gap_mm": 1.0, "num_slices": 13, "t0018_0015": "HEAD"},
        {"uid": "7", "gap_mm": 1.0, "num_slices": 1},
        {"uid": "8", "gap_mm": 1.0, "num_slices": 13, "is_color": True},
    ],
    ids=["thick", "part", "PET", "localizer", "head", "one slice", "color"],
)
@pytest.mark.parametrize("body_part", ["", "CHEST", "Thorax", "CHEST_TO_PELVIS"])
def test_picks_the_one_thin_slice_chest_series(scans, other, body_part):
    folder = scans.dicom_folder(t0018_0015=body_part)
    _add_series(scans, **other)
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    (note,) = volume.source.warnings
    read, left = note.split("; not ")
    assert read.startswith(
        f"2 series in the folder, read the thinnest of the chest, {scans.uid} (CT, 5 slices"
    )
    assert left.startswith(f"{scans.uid}.{other['uid']} (")


@pytest.mark.parametrize("kind", ["REFORMATTED", "MIP", "MINIP", "MIN IP"])
def test_what_was_computed_from_slices_does_not_win_over_them(scans, kind):
    folder = scans.dicom_folder(t0008_0008="ORIGINAL\\PRIMARY\\AXIAL")
    _add_series(scans, "2", num_slices=13, gap_mm=1.0, t0008_0008=f"DERIVED\\SECONDARY\\{kind}")
    np.testing.assert_array_equal(read_volume(folder).array_hu, scans.hu())


@pytest.mark.parametrize("kind", ["MIP", "PROJECTION IMAGE"])
def test_a_projection_does_not_win_over_a_reformatted_series(scans, kind):
    folder = scans.dicom_folder(t0008_0008="DERIVED\\SECONDARY\\AXIAL")
    _add_series(scans, "2", num_slices=13, gap_mm=1.0, t0008_0008=f"DERIVED\\SECONDARY\\{kind}")
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    assert volume.source.warnings[0].endswith("projection)")


@pytest.mark.parametrize("num_bytes", [0, 100, 130, 138, 200])
def test_refuses_end_slices_that_were_cut_to_a_stump(scans, num_bytes):
    folder = scans.dicom_folder()
    scans.cut(folder / "99.dcm", num_bytes)
    with pytest.raises(ValueError, match=r"every slice must be whole, got .*99\.dcm\. Copy it again"):
        read_volume(folder)


def test_refuses_a_stump_without_an_ending_among_slices_without_one(scans):
    folder = scans.dicom_folder()
    for path in folder.iterdir():
        path.rename(path.with_suffix(""))
    (folder / ".hidden").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    assert read_volume(folder).array_hu.shape == scans.shape
    scans.cut(folder / "99", 0)
    with pytest.raises(ValueError, match=r"every slice must be whole, got 0 bytes in 99\. Copy it again"):
        read_volume(folder)


def test_frames_that_are_not_ct_do_not_stand_in_the_way_of_a_series(scans):
    folder = scans.dicom_folder()
    scans.enhanced_ct("ct/dose.dcm", sop_class="1.2.840.10008.5.1.4.1.1.7.3", uids=("1.2.5", scans.study_uid))
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    assert volume.source.warnings[0].endswith("; not 1.2.5 (CT, 1 slices)")
    with pytest.raises(ValueError, match=r"got 5 frames of another kind in dose\.dcm"):
        read_volume(folder, series_uid="1.2.5")


def test_refuses_to_choose_between_kernels_and_lists_them(scans):
    folder = scans.dicom_folder(t0018_1210="B30f")
    _add_series(scans, "2", num_slices=5, gap_mm=3.05, t0018_1210="B60f", t0018_0015="CHEST")
    with pytest.raises(
        ValueError, match=r"got 2 .*among 2: .*mm, B30f\); .* 5 slices of 3\.05 mm, CHEST, B60f\)"
    ):
        read_volume(folder)


def test_refuses_a_folder_of_which_no_series_is_a_chest(scans):
    folder = scans.dicom_folder(t0018_0015="HEAD")
    _add_series(scans, "2", t0018_0015="HEAD", t0008_0008="ORIGINAL\\PRIMARY\\LOCALIZER")
    with pytest.raises(
        ValueError, match=r"got 0 that fit .*HEAD\); .*HEAD, localizer\)\. Pick one with series_uid"
    ):
        read_volume(folder)
    assert read_volume(folder, series_uid=scans.uid).array_hu.shape == scans.shape


def test_the_only_series_is_read_whatever_part_it_names(scans):
    assert read_volume(scans.dicom_folder(t0018_0015="HEAD")).array_hu.shape == scans.shape


# Gantry tilt


def _tilted(scans, tilt_xy_mm, num_slices=9):
    """A scan of f(x, y, z) whose slices drift along their plane; f is linear, so interpolation is exact."""
    folder = scans.folder / "tilted"
    folder.mkdir()
    for z in range(num_slices):
        origin = np.array([4.0 + z * tilt_xy_mm[0], -8.0 + z * tilt_xy_mm[1], 3.0 * z])
        y, x = np.meshgrid(origin[1] + 1.5 * np.arange(24), origin[0] + 2.0 * np.arange(20), indexing="ij")
        scans.dicom_slice(folder / f"{z}.dcm", _linear(x, y, origin[2]).astype(np.int16), origin)
    return folder


def _linear(x_mm, y_mm, z_mm):
    return np.rint(-600 + 10 * x_mm + 4 * y_mm - 10 * z_mm)


@pytest.mark.parametrize("tilt_xy_mm", [(0.0, 0.77), (0.0, -0.9), (1.1, 0.6), (-0.8, 0.0)])
def test_undoes_a_constant_gantry_tilt(scans, tilt_xy_mm):
    volume = read_volume(_tilted(scans, tilt_xy_mm))
    note, _ = volume.source.warnings  # the other one: a ramp is spread unlike a body
    tilt = np.degrees(np.arctan2(np.hypot(*tilt_xy_mm), 3.0))
    assert note == (
        f"gantry tilt of {tilt:.1f} degrees undone: slices shifted in their plane, linear interpolation"
    )
    assert volume.spacing_mm == pytest.approx((3.0, 1.5, 2.0))
    drift_xy = 8 * np.abs(tilt_xy_mm) / [2.0, 1.5]
    assert volume.array_hu.shape == (9, 24 + np.ceil(drift_xy[1]), 20 + np.ceil(drift_xy[0]))
    z, y, x = np.meshgrid(*[np.arange(n) for n in volume.array_hu.shape], indexing="ij")
    x_mm, y_mm, z_mm = np.tensordot(
        (np.diag([-1, -1, 1, 1]) @ volume.affine)[:3], [x, y, z, np.ones_like(x)], axes=1
    )
    is_seen = _is_within(x_mm, y_mm, z_mm / 3.0, tilt_xy_mm)
    assert is_seen.sum() > 9 * 19 * 23 * 0.9
    np.testing.assert_allclose(volume.array_hu[is_seen], _linear(x_mm, y_mm, z_mm)[is_seen], atol=1)
    bias = (volume.array_hu - _linear(x_mm, y_mm, z_mm))[is_seen].mean()
    assert abs(bias) < 0.1  # rounded, not cut off
    is_outside = ~_is_within(x_mm, y_mm, z_mm / 3.0, tilt_xy_mm, margin=1.0)
    assert is_outside.any()
    assert (volume.array_hu[is_outside] == -1024).all()


def _is_within(x_mm, y_mm, slices, tilt_xy_mm, margin=0.0):
    x, y = (x_mm - 4.0 - slices * tilt_xy_mm[0]) / 2.0, (y_mm + 8.0 - slices * tilt_xy_mm[1]) / 1.5
    low, high = -margin - 1e-6, margin + 1e-6
    return (x > low) & (x < 19 + high) & (y > low) & (y < 23 + high)


def test_a_drift_below_half_a_pixel_is_not_a_tilt(scans):
    volume = read_volume(scans.dicom_folder(shift_y_mm=0.18))  # 0.72 of 0.75 mm over four steps
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    assert volume.source.warnings == ()


# All frames in one file


@pytest.mark.parametrize("is_implicit", [True, False])
@pytest.mark.parametrize("has_lengths", [True, False])
def test_reads_an_enhanced_ct_of_any_encoding(scans, is_implicit, has_lengths):
    path = scans.enhanced_ct("frames", dicom=scans.encoding(is_implicit, has_lengths))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    assert volume.spacing_mm == pytest.approx(scans.spacing_mm)
    np.testing.assert_allclose(volume.affine[:3, 3], [-10.0, -20.0, 0.0])
    assert volume.source.rescale == "slope 1 and intercept -1024 of the DICOM header, applied once"
    assert volume.source.format == "DICOM"


def test_reads_an_enhanced_ct_from_a_folder(scans):
    path = scans.enhanced_ct("frames")
    (scans.folder / "study").mkdir()
    path.rename(scans.folder / "study" / "frames")
    np.testing.assert_array_equal(read_volume(scans.folder / "study").array_hu, scans.hu())


def test_sorts_frames_and_applies_the_rescale_of_each(scans):
    order = [2, 0, 1, 4, 3]
    path = scans.enhanced_ct(
        "frames.dcm",
        positions_mm=[(10, 20, 3.0 * z) for z in order],
        rescale=lambda frame: (0.5 if frame else 2.0, -1024.0 - 100 * frame),
        stored=np.stack(
            [(scans.hu()[z] // 2 * 2 + 1024 + 100 * k) * (2 if k else 0.5) for k, z in enumerate(order)]
        ).astype(np.uint16),
    )
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array_hu, scans.hu() // 2 * 2)
    assert volume.source.rescale == (
        "5 different slopes and intercepts in the DICOM headers, applied once to each slice"
    )


def test_reads_oblique_frames_like_the_single_slices(scans):
    turn = scans.oblique_affine()[:3, :3] / [2.0, 1.5, 3.0]
    folder = scans.folder / "ct"
    folder.mkdir()
    positions = [np.array([1.0, 2.0, 3.0]) + turn[:, 2] * 3.0 * z for z in range(5)]
    for z, position in enumerate(positions):
        scans.dicom_slice(folder / f"{z}.dcm", scans.hu()[z], position, turn)
    path = scans.enhanced_ct("frames.dcm", positions, orientation=turn[:, :2].T.ravel())
    frames, slices = read_volume(path), read_volume(folder)
    np.testing.assert_array_equal(frames.array_hu, slices.array_hu)
    np.testing.assert_allclose(frames.affine, slices.affine, atol=1e-4)


def test_reads_the_enhanced_ct_that_gdcm_writes(scans):
    image = sitk.GetImageFromArray(scans.hu())
    image.SetSpacing(scans.spacing_mm[::-1])
    image.SetOrigin((10.0, 20.0, 30.0))
    image.SetMetaData("0008|0060", "CT")
    sitk.WriteImage(image, str(scans.folder / "frames.dcm"))
    volume = read_volume(scans.folder / "frames.dcm")
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    np.testing.assert_allclose(volume.affine[:3, 3], [-10.0, -20.0, 30.0])
    assert volume.spacing_mm == pytest.approx(scans.spacing_mm)
