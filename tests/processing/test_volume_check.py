import os
from pathlib import Path

import numpy as np
import pytest

from radtower.processing.volume_check import inspect_volume
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, read_volume


def _chest(shape=(64, 160, 140), spacing_mm=(3.0, 2.0, 2.0), lung_hu=-850, noise_hu=60.0, notes=()) -> Volume:
    """An elliptic body with two lungs and a spine, in noisy air."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    array = np.full(shape, -1000.0)
    array[(y / 0.7) ** 2 + (x / 0.9) ** 2 < 1] = 40
    for side in (-1, 1):
        array[(z / 0.9) ** 2 + (y / 0.5) ** 2 + ((x - side * 0.42) / 0.33) ** 2 < 1] = lung_hu
    array[(abs(x) < 0.08) & (abs(y - 0.5) < 0.1)] = 800
    array += np.random.default_rng(0).normal(0, noise_hu, shape)
    return _volume(array, spacing_mm, notes)


def _volume(array, spacing_mm=(3.0, 2.0, 2.0), notes=()) -> Volume:
    source = VolumeSource("phantom", "slope 1 and intercept 0", notes)
    array_hu = np.maximum(array, -1024).round().astype(np.int16)
    return Volume(array_hu, spacing_mm, affine_from_spacing(spacing_mm), "LPS", source)


def test_a_chest_is_usable():
    volume = _chest()
    report = inspect_volume(volume)
    assert report.warnings == ()
    assert report.verdict == "usable"
    in_ellipsoids, in_cylinder = 2 * 4 / 3 * np.pi * 0.9 * 0.5 * 0.33, 2 * np.pi * 0.7 * 0.9
    assert report.lung_fraction == pytest.approx(in_ellipsoids / in_cylinder, abs=0.02)
    assert report.air_fraction == pytest.approx((volume.array_hu < -900).mean())


def test_a_head_is_read_and_warned_about():
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in (60, 140, 140)], indexing="ij")
    array = np.full(z.shape, -1000.0)
    array[z**2 + y**2 + x**2 < 0.8] = 1000  # skull
    array[z**2 + y**2 + x**2 < 0.7] = 35  # brain
    report = inspect_volume(_volume(array, (3.0, 1.6, 1.6)))
    assert report.verdict == "usable with warnings"
    assert "only 0.0% of the body is lung: this may be an abdomen or a head" in report.warnings[0]


def test_measures_in_z_y_x_order():
    report = inspect_volume(_chest(spacing_mm=(3.0, 2.0, 2.03)))
    assert report.shape == (64, 160, 140)
    assert report.spacing_mm == (3.0, 2.0, 2.03)
    assert report.extent_mm == pytest.approx((192.0, 320.0, 284.2))
    assert report.orientation == "LPS"
    assert report.rescale == "slope 1 and intercept 0"


def test_reports_the_range_and_percentiles():
    array = np.full((100, 8, 8), -1000)
    array[50:75], array[75:] = 40, 1200
    report = inspect_volume(_volume(array))
    assert (report.hu_min, report.hu_max) == (-1000.0, 1200.0)
    assert report.hu_percentiles == {1: -1000.0, 25: -1000.0, 50: -480.0, 75: 330.0, 99: 1200.0}


@pytest.mark.parametrize(
    ("volume", "warning"),
    [
        (_chest(lung_hu=40), "only 0.0% of the body is lung"),
        (_chest(lung_hu=-1000), "only "),
        (_chest(shape=(40, 160, 140)), "the scan is 120 mm high"),
        (_chest(spacing_mm=(3.0, 1.25, 1.25)), "the field of view is 175 mm wide"),
        (_chest(shape=(32, 160, 140), spacing_mm=(7.5, 2.0, 2.0)), "slices are 7.5 mm apart"),
        (_chest(shape=(64, 160, 120)), "the matrix is 160 x 120"),
        (_chest(spacing_mm=(3.0, 2.0, 2.2)), "pixels are not square: 2.000 x 2.200 mm"),
        (_chest(notes=("7 voxels of padding",)), "7 voxels of padding"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_warns_once_of_what_is_odd(volume, warning):
    report = inspect_volume(volume)
    assert report.verdict == "usable with warnings"
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith(warning)


@pytest.mark.parametrize(
    ("low", "high", "warning"),
    [(-1000, 400, "the highest value is 400 HU"), (-800, 1200, "the lowest value is -800 HU")],
)
def test_warns_of_a_clipped_range(low, high, warning):
    volume = _chest()
    clipped = _volume(np.clip(volume.array_hu, low, high))
    assert any(text.startswith(warning) for text in inspect_volume(clipped).warnings)


@pytest.mark.parametrize("noise_hu", [0.0, 120.0])
def test_noise_does_not_make_lung(noise_hu):
    assert inspect_volume(_chest(lung_hu=40, noise_hu=noise_hu)).lung_fraction < 0.01


@pytest.mark.parametrize(
    ("name", "is_chest"),
    [
        ("ct_dicom/acil_ct64/dicom", True),
        ("ct_dicom/ibsi_1_ct_radiomics_phantom/dicom/image", True),
        ("ct_nifti/lung1_001/lung1_001_1p5x1p5x3.nii.gz", True),
        ("ct_nifti/totalseg_example_ct.nii.gz", False),
    ],
)
def test_tells_a_real_chest_from_a_real_abdomen(name, is_chest):
    if "RADTOWER_REAL_DATA" not in os.environ:
        pytest.skip("set RADTOWER_REAL_DATA to the folder with the real scans")
    report = inspect_volume(read_volume(Path(os.environ["RADTOWER_REAL_DATA"], name)))
    assert any("of the body is lung" in warning for warning in report.warnings) is not is_chest
