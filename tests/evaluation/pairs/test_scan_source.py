import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from radtower.data.manifest import read_manifest
from radtower.data.volume_cache import build_volume_cache
from radtower.evaluation.pairs.scan_source import picture_source, scan_source
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume

SPACING_MM = (3.0, 2.0, 2.5)


def write_manifest(folder, names):
    rows = [(f"s{n}", f"p{n}", name, "no nodule", "test") for n, name in enumerate(names)]
    columns = ["study_id", "patient_id", "image_path", "report", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)
    return read_manifest(folder / "manifest.csv")


@pytest.fixture
def volumes(tmp_path):
    """Two scans, the second of them damaged."""
    array = np.random.default_rng(0).integers(-1000, 600, (8, 12, 10)).astype(np.int16)
    volume = Volume(array, SPACING_MM, affine_from_spacing(SPACING_MM), "LPS", VolumeSource("t", "n"))
    write_volume(volume, tmp_path / "good.nii.gz")
    (tmp_path / "bad.nii.gz").write_bytes(b"damaged")
    return write_manifest(tmp_path, ["good.nii.gz", "bad.nii.gz"])


def test_a_scan_is_prepared_alike_from_its_file_and_from_a_cache(tiny_medclip, volumes, tmp_path):
    build_volume_cache(volumes.scans(), tiny_medclip.processor.image_processor, tmp_path / "cache")
    from_file = scan_source(tiny_medclip, volumes)
    from_cache = scan_source(tiny_medclip, volumes, tmp_path / "cache")
    assert from_file("s0").shape == (1, 8, 8, 8)
    # A cache rounds to whole HU; the window of 1,200 HU spans 2.
    torch.testing.assert_close(from_cache("s0"), from_file("s0"), atol=0.5 / 600 + 1e-5, rtol=0)
    assert from_file("s0").std() > 0.1
    for load in (from_file, from_cache):
        with pytest.raises((RuntimeError, ValueError), match=r"bad\.nii\.gz"):
            load("s1")


def test_a_cache_of_other_settings_or_scans_is_refused(tiny_medclip, volumes, tmp_path):
    other = CT3DImageProcessor(spacing_mm=(3.0, 3.0, 2.0), size=(8, 8, 8))
    build_volume_cache(volumes.scans(), other, tmp_path / "other")
    with pytest.raises(ValueError, match="the cache must come from the settings of the processor"):
        scan_source(tiny_medclip, volumes, tmp_path / "other")
    first = {"s0": volumes.scans()["s0"]}
    build_volume_cache(first, tiny_medclip.processor.image_processor, tmp_path / "part")
    with pytest.raises(ValueError, match="the cache must cover the manifest, got 1 of 2"):
        scan_source(tiny_medclip, volumes, tmp_path / "part")


def test_images_are_read_by_the_2d_processor(tiny_image_clip, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (20, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "i.png")
    manifest = write_manifest(tmp_path, ["i.png", "none.png"])
    load = scan_source(tiny_image_clip, manifest)
    expected = tiny_image_clip.processor(images=[Image.fromarray(pixels)])["pixel_values"][0]
    assert torch.equal(load("s0"), expected)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        load("s1")
    with pytest.raises(ValueError, match=r"cache must be left out for a tower of 2D images, got .*cache"):
        scan_source(tiny_image_clip, manifest, tmp_path / "cache")


def test_a_person_sees_hounsfield_units(tiny_medclip, volumes, tmp_path):
    build_volume_cache(volumes.scans(), tiny_medclip.processor.image_processor, tmp_path / "cache")
    array = picture_source(tiny_medclip, volumes)("s0")
    assert array.shape == (8, 12, 10)
    assert array.min() < -900
    assert array.max() > 500
    resampled = picture_source(tiny_medclip, volumes, tmp_path / "cache")("s0")
    assert resampled.dtype == np.int16
    assert resampled.shape != array.shape


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("L", (6, 5)), ("I;16", (6, 5)), ("RGB", (6, 5, 3)), ("P", (6, 5, 3)), ("RGBA", (6, 5, 3))],
)
def test_images_are_drawn_in_gray_or_color(tiny_image_clip, tmp_path, mode, shape):
    Image.new(mode, (5, 6)).save(tmp_path / "i.png")
    manifest = write_manifest(tmp_path, ["i.png"])
    assert picture_source(tiny_image_clip, manifest)("s0").shape == shape
