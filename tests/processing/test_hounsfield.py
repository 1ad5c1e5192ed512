"""Each rescale once, whatever headers and tables say; padding becomes air."""

import nibabel as nib
import numpy as np
import pytest

from radtower.processing.hounsfield import to_hounsfield
from radtower.processing.reading.stored_scan import AS_STORED, Reading, header_readings
from radtower.processing.scan_reference import ScanReference
from radtower.processing.volume_io import read_volume


def test_applies_the_slope_and_intercept_of_nifti_once(scans, tmp_path):
    stored = (scans.hu() + 1024).astype(np.int16) * 2
    path = scans.patched("a.nii", 112, "<2f", 0.5, -1024.0)
    raw = path.read_bytes()[:352] + stored.tobytes()
    path.write_bytes(raw)
    for source in (path, nib.load(path)):
        volume = read_volume(source)
        np.testing.assert_array_equal(volume.array_hu, scans.hu())
        assert volume.array_hu.dtype == np.int16
    assert "slope 0.5 and intercept -1024" in read_volume(path).source.rescale
    assert "applied once by nibabel" in read_volume(nib.load(path)).source.rescale


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, -1024.0), (2.0, -1000.0)])
def test_applies_the_slope_and_intercept_of_dicom_once(scans, tmp_path, slope, intercept):
    scan = (scans.hu() // 2 * 2).astype(np.int16)
    tags = {"t0028_1053": f"{slope:g}", "t0028_1052": f"{intercept:g}"}
    volume = read_volume(scans.dicom_folder("ct", array=scan, **tags))
    np.testing.assert_array_equal(volume.array_hu, scan)
    assert f"slope {slope:g} and intercept {intercept:g}" in volume.source.rescale


def test_applies_the_intercept_of_each_dicom_slice(scans):
    folder = scans.dicom_folder("ct", t0028_1053="1", t0028_1052="-1024")
    path = folder / "97.dcm"
    path.write_bytes(path.read_bytes().replace(b"-1024 ", b"-999.5"))
    volume = read_volume(folder)
    np.testing.assert_allclose(volume.array_hu[2], scans.hu()[2] + 24.5)
    np.testing.assert_allclose(volume.array_hu[3], scans.hu()[3])
    assert volume.source.rescale.startswith("2 different slopes and intercepts")


@pytest.mark.parametrize("padding", [-2000, -3024, -8192])
def test_turns_padding_into_air_and_says_so(scans, tmp_path, padding):
    scan = scans.hu()
    scan[:, :2] = padding
    volume = read_volume(scans.nifti("a.nii.gz", scan))
    assert (volume.array_hu[:, :2] == -1024).all()
    np.testing.assert_array_equal(volume.array_hu[:, 2:], scan[:, 2:])
    assert volume.source.warnings == (
        f"60 voxels of padding (lowest {padding} HU) set to -1024 HU, which is air",
    )


def test_clips_the_noise_of_air_without_a_warning(scans, tmp_path):
    scan = scans.hu()
    scan[0, 0, 0] = -1100
    volume = read_volume(scans.nifti("a.nii.gz", scan))
    assert volume.array_hu.min() == -1024
    assert volume.source.warnings == ()


def test_narrows_whole_numbers_and_keeps_fractions(scans, tmp_path):
    assert read_volume(scans.nifti("a.nii.gz", scans.hu().astype(np.float32))).array_hu.dtype == np.int16
    assert read_volume(scans.nifti("a.nii.gz", scans.hu().astype(np.int32))).array_hu.dtype == np.int16
    metal = scans.hu().astype(np.int32)
    metal[2, 3, 3] = 40_000
    assert read_volume(scans.nifti("a.nii.gz", metal)).array_hu[2, 3, 3] == 40_000


# The table, the header and the values: once, never twice (CT-CLIP issue 50)

TABLES = [(1.0, -1024.0), (1.0, -8192.0), (0.5, -1024.0), (2.0, -3000.0), (-1.0, 3000.0)]


@pytest.mark.parametrize(("slope", "intercept"), TABLES)
def test_the_rescale_of_a_table_is_applied_where_the_file_was_not_rescaled(scans, slope, intercept):
    hu = scans.hu() // 2 * 2
    path = scans.nifti("v1.nii.gz", ((hu - intercept) / slope).astype(np.int16))
    volume = read_volume(ScanReference(path, rescale=(slope, intercept)))
    np.testing.assert_array_equal(volume.array_hu, hu)
    assert volume.array_hu.dtype == np.int16
    assert volume.source.rescale == f"slope {slope:g} and intercept {intercept:g} of the table, applied once"


@pytest.mark.parametrize(("slope", "intercept"), TABLES)
@pytest.mark.parametrize("padding", [None, -2000, -3024, -8192])
def test_the_rescale_of_a_table_is_not_applied_to_hounsfield_units(scans, slope, intercept, padding):
    hu = scans.hu()
    if padding is not None:
        hu[:, 0] = padding
    volume = read_volume(ScanReference(scans.nifti("v2.nii.gz", hu), rescale=(slope, intercept)))
    np.testing.assert_array_equal(volume.array_hu, np.maximum(hu, -1024))
    assert volume.source.rescale.endswith(
        f"slope {slope:g} and intercept {intercept:g} of the table not applied, the values are already HU"
    )


def test_stored_values_with_negative_padding_are_not_taken_for_hounsfield_units(scans):
    """GE pads with -2000 and adds the usual intercept, which makes -3024; air is stored as 24."""
    stored = scans.hu() + np.int16(1024)
    stored[:, 0] = -2000
    path = scans.nifti("a.nii", stored)
    volume = read_volume(ScanReference(path, rescale=(1, -1024)))
    np.testing.assert_array_equal(volume.array_hu[:, 1:], scans.hu()[:, 1:])
    assert (volume.array_hu[:, 0] == -1024).all()
    assert volume.source.warnings == ("30 voxels of padding (lowest -3024 HU) set to -1024 HU, which is air",)
    with pytest.raises(ValueError, match=r"values from -2000 to .*none of them air"):
        read_volume(path)


def test_the_header_is_not_applied_to_values_that_are_hounsfield_units(scans):
    path = scans.patched("a.nii", 112, "<2f", 1.0, -1024.0)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    assert volume.source.rescale == (
        "slope 1 and intercept -1024 of the NIfTI header, not applied: the stored values are already HU"
    )


def test_a_header_that_nibabel_applied_to_hounsfield_units_is_undone(scans):
    volume = read_volume(nib.load(scans.patched("a.nii", 112, "<2f", 1.0, -1024.0)))
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    assert volume.array_hu.dtype == np.int16
    assert "intercept -1024 of the NIfTI header, not applied" in volume.source.rescale


def test_a_dicom_rescale_of_values_that_are_hounsfield_units_is_undone(scans):
    folder = scans.dicom_folder(array=scans.hu() - np.int16(1024), t0028_1053="1", t0028_1052="-1024")
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    assert "intercept -1024 of the DICOM header, not applied" in volume.source.rescale


def test_a_table_replaces_the_header_of_dicom_and_is_not_added_to_it(scans):
    """GDCM has applied the header when we see the values: stored = HU + 1000, header says 0, table -1000."""
    folder = scans.dicom_folder(array=scans.hu() + np.int16(1000), t0028_1053="1", t0028_1052="-300")
    volume = read_volume(ScanReference(folder, rescale=(1, -1300)))
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    assert volume.source.rescale == "slope 1 and intercept -1300 of the table, applied once"


def test_header_and_table_together_are_applied_once(scans):
    path = scans.patched(
        "a.nii", 112, "<2f", 1.0, -1024.0, path=scans.nifti("b.nii", scans.hu() + np.int16(1024))
    )
    volume = read_volume(ScanReference(path, rescale=(1, -1024)))
    np.testing.assert_array_equal(volume.array_hu, scans.hu())
    assert volume.source.rescale.startswith("slope 1 and intercept -1024 of the NIfTI header, applied once; ")


def test_a_slope_that_is_not_a_number_means_no_rescale(scans):
    path = scans.patched("a.nii", 112, "<2f", np.nan, np.nan)
    assert read_volume(path).source.rescale == "none in the file: stored values are taken as HU"


def test_judges_a_scan_with_a_rim_of_blurred_padding(scans):
    hu = np.full((20, 20, 20), -1000, np.int16)
    hu[:, 5:15, 5:15] = 40
    hu[:, 0], hu[:, 1, :16] = -3024, -2000  # a rim of 4 % of what is not constant padding
    assert (read_volume(scans.nifti("a.nii.gz", hu)).array_hu[:, :2] <= -1000).all()


def test_a_flat_distribution_has_no_air_peak_to_judge(scans):
    hu = np.random.default_rng(1).integers(-1000, 600, (8, 12, 12)).astype(np.int16)
    np.testing.assert_array_equal(read_volume(scans.nifti("a.nii.gz", hu)).array_hu, hu)


def test_a_little_gas_in_an_abdomen_is_not_the_air_peak(scans):
    hu = np.full((20, 20, 20), 40, np.int16)
    hu[:4, :8, :8] = -400  # 3 % of the scan
    np.testing.assert_array_equal(read_volume(scans.nifti("a.nii.gz", hu)).array_hu, hu)
    hu[:8, :8, :8] = -400  # 6 %
    with pytest.raises(ValueError, match=r"air peak near -39\d instead of -1000"):
        read_volume(scans.nifti("a.nii.gz", hu))


def test_the_sample_of_a_large_scan_meets_every_column(scans):
    hu = np.full((32, 256, 512), -1000, np.int16)
    hu[:, :, ::4] = 40
    np.testing.assert_array_equal(read_volume(scans.nifti("a.nii", hu)).array_hu, hu)


# The values decide between readings


def _body(shape: tuple[int, int, int] = (8, 48, 48), lung_hu: float = -850.0) -> np.ndarray:
    """Air around a cylinder of soft tissue with lungs, fat and a spine, and noise."""
    _, y, x = np.meshgrid(*[np.linspace(-1, 1, num) for num in shape], indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(x / 0.9) ** 2 + (y / 0.75) ** 2 < 1] = -100
    hu[(x / 0.8) ** 2 + (y / 0.65) ** 2 < 1] = 40
    for middle in (-0.4, 0.4):
        hu[((x - middle) / 0.28) ** 2 + (y / 0.4) ** 2 < 1] = lung_hu
    hu[(x / 0.14) ** 2 + ((y - 0.45) / 0.14) ** 2 < 1] = 900
    return np.round(hu + np.random.default_rng(0).normal(0, 10, shape)).astype(np.int16)


def _outside_circle(shape: tuple[int, int, int]) -> np.ndarray:
    _, y, x = np.meshgrid(*[np.linspace(-1, 1, num) for num in shape], indexing="ij")
    return x**2 + y**2 > 1


@pytest.mark.parametrize("intercept", [-1024.0, -8192.0])
@pytest.mark.parametrize("padding", [-1000, -1024])
def test_stored_values_padded_like_air_are_not_taken_for_hounsfield_units(intercept, padding):
    hu = _body()
    outside = _outside_circle(hu.shape)
    stored = (hu - intercept).astype(np.int16)
    stored[outside] = padding
    once = Reading(1.0, intercept, "table")
    array, words, _ = to_hounsfield(stored.copy(), "scan", (AS_STORED, once))
    assert words == "table"
    np.testing.assert_array_equal(array[~outside], np.maximum(hu[~outside], -1024))
    assert (array[outside] == -1024).all()
    with pytest.raises(ValueError, match=rf"values from {padding} to .*none of them air but the constant"):
        to_hounsfield(stored, "scan")


@pytest.mark.parametrize("clipped", [-1000, -1024])
def test_air_clipped_to_a_constant_is_air(clipped):
    hu = np.where(_body(lung_hu=40) < -200, clipped, _body(lung_hu=40)).astype(np.int16)
    for readings in ((AS_STORED,), (AS_STORED, Reading(1.0, -1024.0, "table"))):
        array, words, notes = to_hounsfield(hu.copy(), "scan", readings)
        np.testing.assert_array_equal(array, hu)
        assert (words, notes) == (AS_STORED.words, ())


def test_a_lying_header_is_not_applied_to_a_scan_with_little_air():
    hu = _body(lung_hu=40)[:, 12:36, 12:36]
    hu[0, :2, :12] = -900  # a little gas
    array, words, notes = to_hounsfield(
        hu.copy(), "scan", header_readings("DICOM", 1.0, -1024.0, is_applied=False)
    )
    np.testing.assert_array_equal(array, hu)
    assert words.endswith("not applied: the stored values are already HU")
    assert notes == ()


def test_a_header_that_is_right_is_applied_to_a_scan_with_little_air():
    hu = _body(lung_hu=40)[:, 12:36, 12:36]
    hu[0, :2, :12] = -900
    readings = header_readings("DICOM", 1.0, -1024.0, is_applied=False)
    array, words, _ = to_hounsfield(hu + np.int16(1024), "scan", readings)
    np.testing.assert_array_equal(array, hu)
    assert words.endswith("applied once")


def test_refuses_a_scan_with_the_sign_turned():
    with pytest.raises(ValueError, match="more like those of a body with the sign turned"):
        to_hounsfield(-_body(), "scan")
    array, words, _ = to_hounsfield(-_body(), "scan", (AS_STORED, Reading(-1.0, 0.0, "turned")))
    assert words == "turned"
    np.testing.assert_array_equal(array, np.maximum(_body(), -1024))


def test_warns_of_values_that_are_spread_unlike_those_of_a_body():
    hu = np.random.default_rng(1).integers(-1000, 3000, (8, 12, 12)).astype(np.int16)
    _, _, notes = to_hounsfield(hu, "scan")
    assert notes == ("the values are spread unlike those of a body: they may not be in Hounsfield units",)
    assert to_hounsfield(_body(), "scan")[2] == ()


def test_says_so_where_two_readings_fit_the_values():
    hu = _body()
    readings = (AS_STORED, Reading(1.0, -10.0, "ten less"))
    array, words, notes = to_hounsfield(hu.copy(), "scan", readings)
    np.testing.assert_array_equal(array, np.maximum(hu, -1024))
    assert (words, notes) == (AS_STORED.words, ("the values fit another reading as well: ten less",))
