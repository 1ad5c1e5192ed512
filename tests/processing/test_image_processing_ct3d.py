import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.image_processing_resampling import lung_center

AIR_HU, WATER_HU, BONE_HU = -1000.0, 0.0, 1000.0
SPACING_MM, SIZE = (2.0, 1.0, 1.0), (4, 8, 6)


@dataclass
class StubVolume:
    """A volume that was judged when it was read: one constant value is taken, where a bare array is not."""

    array_hu: np.ndarray | torch.Tensor
    spacing_mm: tuple[float, ...] = SPACING_MM
    orientation: str = "LPS"


@pytest.fixture
def processor() -> CT3DImageProcessor:
    return CT3DImageProcessor(spacing_mm=SPACING_MM, size=SIZE, windows_hu=[[AIR_HU, BONE_HU]])


def _resampled_by_definition(volume, spacing_in, size, spacing_out):
    """The triangle filter, voxel by voxel, in physical coordinates around the center."""
    out = np.asarray(volume, dtype=np.float64)
    for axis in range(3):
        n, step = out.shape[axis], spacing_out[axis] / spacing_in[axis]
        slices = []
        for j in range(size[axis]):
            center = (j - (size[axis] - 1) / 2) * step + (n - 1) / 2
            if not -0.5 <= center <= n - 0.5:
                slices.append(np.full(out.take(0, axis).shape, np.nan))
                continue
            weights = np.array([max(0.0, 1 - abs(i - center) / max(step, 1)) for i in range(n)])
            slices.append(np.tensordot(weights / weights.sum(), out, axes=(0, axis)))
        out = np.stack(slices, axis)
    return np.where(np.isnan(out), AIR_HU, out)


@pytest.mark.parametrize(
    ("hu", "expected"), [(AIR_HU, -1.0), (WATER_HU, 0.0), (BONE_HU, 1.0), (3000.0, 1.0), (-1024.0, -1.0)]
)
def test_maps_hounsfield_units_onto_the_window(processor, hu, expected):
    pixel_values = processor(StubVolume(torch.full(SIZE, hu)))["pixel_values"]
    assert pixel_values.shape == (1, 1, *SIZE)
    assert pixel_values.dtype == torch.float32
    torch.testing.assert_close(pixel_values, torch.full((1, 1, *SIZE), expected))


def test_gives_one_channel_per_window():
    processor = CT3DImageProcessor(spacing_mm=SPACING_MM, size=SIZE, windows_hu=[(-1000, 0), (-160, 240)])
    pixel_values = processor(StubVolume(torch.full(SIZE, -250.0)))["pixel_values"]
    assert pixel_values[0, :, 0, 0, 0].tolist() == pytest.approx([0.5, -1.0])
    pixel_values = processor(StubVolume(torch.full(SIZE, 140.0)))["pixel_values"]
    assert pixel_values[0, :, 0, 0, 0].tolist() == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize(
    ("shape", "spacing_in", "size", "spacing_out"),
    [
        ((20, 31, 18), (1.0, 0.7, 0.9), (7, 10, 12), (3.0, 1.5, 1.5)),  # coarser
        ((5, 6, 7), (5.0, 2.0, 3.0), (9, 12, 11), (2.0, 1.5, 1.25)),  # finer
        (
            (12, 9, 40),
            (1.25, 4.0, 0.5),
            (8, 20, 6),
            (3.0, 1.5, 1.5),
        ),  # mixed, padded in Z and Y, cropped in X
    ],
)
def test_agrees_with_the_filter_written_out_in_millimeters(shape, spacing_in, size, spacing_out):
    volume = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    processor = CT3DImageProcessor(spacing_mm=spacing_out, size=size, windows_hu=[(AIR_HU, BONE_HU)])
    pixel_values = processor(volume, spacing_in)["pixel_values"]
    expected = _resampled_by_definition(volume, spacing_in, size, spacing_out) / 1000
    np.testing.assert_allclose(pixel_values[0, 0].numpy(), expected, atol=1e-5)


def test_agrees_with_the_antialiased_interpolation_of_torch_in_a_plane():
    plane = torch.randn(1, 1, 24, 18) * 300
    processor = CT3DImageProcessor(spacing_mm=(1, 3, 2), size=(2, 8, 9), windows_hu=[(-2000, 2000)])
    pixel_values = processor(plane[0].expand(2, 24, 18), (1.0, 1.0, 1.0))["pixel_values"]
    expected = F.interpolate(plane, size=(8, 9), mode="bilinear", antialias=True)[0, 0] / 2000
    torch.testing.assert_close(pixel_values[0, 0, 0], expected, atol=1e-5, rtol=0)


def test_without_antialias_it_is_linear_interpolation(processor):
    volume = torch.randn(9, 24, 18) * 300
    spacing_mm = (1.7, 0.6, 0.9)  # finer than the output on every axis
    processor.antialias = False
    resampled = processor.resample(volume, spacing_mm)
    steps = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(SIZE, SPACING_MM, strict=True)]
    # grid_sample wants positions in [-1, 1] from the first to the last voxel, x first.
    axes = [s / mm / ((n - 1) / 2) for s, mm, n in zip(steps, spacing_mm, volume.shape, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)
    expected = F.grid_sample(
        volume.clamp(AIR_HU, BONE_HU)[None, None], grid[None].float(), align_corners=True
    )
    torch.testing.assert_close(resampled, expected[0, 0], atol=1e-2, rtol=0)
    processor.antialias = True
    assert not torch.allclose(processor.resample(volume, spacing_mm), expected[0, 0], atol=50)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_averages_out_detail_finer_than_the_new_spacing(axis):
    stripes = torch.tensor([1.0, -1.0] * 27)[:54] * 500
    shape, spacing, size = [1, 1, 1], [3.0, 3.0, 3.0], [1, 1, 1]
    shape[axis], spacing[axis], size[axis] = 54, 1.0, 18
    processor = CT3DImageProcessor(spacing_mm=(3, 3, 3), size=size, windows_hu=[(AIR_HU, BONE_HU)])
    pixel_values = processor([stripes.view(shape)], [spacing])["pixel_values"].flatten()
    # Taking every third voxel would give +-0.5; the filter leaves (3 - 4 + 2) / 9 of it.
    assert pixel_values[1:-1].abs().max() == pytest.approx(0.5 / 9, abs=1e-6)


def test_clamps_before_resampling_so_that_metal_does_not_bleed():
    volume = torch.full((1, 1, 6), AIR_HU)
    volume[..., 3] = 30_000.0
    processor = CT3DImageProcessor(spacing_mm=(1, 1, 3), size=(1, 1, 2), windows_hu=[(AIR_HU, BONE_HU)])
    right = processor([volume], [(1.0, 1.0, 1.0)])["pixel_values"][0, 0, 0, 0, 1]
    # Voxels 2 to 5 weigh 1, 2, 3, 2 there; voxel 6 does not exist.
    assert right.item() == pytest.approx(-1 + 2 * 2 / 8)


def test_pads_with_air_around_a_small_volume(processor):
    pixel_values = processor(StubVolume(torch.full((2, 8, 6), WATER_HU)))["pixel_values"]
    assert pixel_values[0, 0, :, 0, 0].tolist() == [-1.0, 0.0, 0.0, -1.0]


def test_pads_with_the_stated_value():
    processor = CT3DImageProcessor(SPACING_MM, SIZE, [(AIR_HU, BONE_HU)], fill_hu=-400.0)
    pixel_values = processor(StubVolume(torch.full((4, 8, 4), WATER_HU)))["pixel_values"]
    assert pixel_values[0, 0, 0, 0].tolist() == pytest.approx([-0.4, 0.0, 0.0, 0.0, 0.0, -0.4])


def test_crops_around_the_center(processor):
    ramp = torch.arange(10.0)[:, None, None].expand(10, 8, 6) * 100 - 600
    pixel_values = processor([ramp], [SPACING_MM])["pixel_values"]
    assert pixel_values[0, 0, :, 0, 0].tolist() == pytest.approx([-0.3, -0.2, -0.1, 0.0])


def test_preprocessing_is_resampling_and_then_windowing():
    processor = CT3DImageProcessor(
        SPACING_MM, SIZE, [(-1000, 0), (-160, 240)], fill_hu=-1020.0, cache_size=(6, 8, 12)
    )
    volume, spacing_mm = torch.randn(5, 9, 30) * 800, (1.4, 0.7, 0.8)
    volume[..., :14], volume[..., 16:] = -3000.0, 3000.0
    resampled = processor.resample(volume, spacing_mm)
    assert (resampled.shape, resampled.dtype) == (SIZE, torch.float32)
    assert (resampled[0, 0].unique().tolist(), resampled.max().item()) == ([-1020.0], 240.0)
    assert resampled[1:3, 1:7].min().item() == pytest.approx(-1000.0, abs=1e-3)
    pixel_values = processor(volume, spacing_mm)["pixel_values"][0]
    assert torch.equal(processor.window(resampled), pixel_values)
    expected = torch.stack([(resampled.clamp(-1000, 0) + 500) / 500, (resampled.clamp(-160, 240) - 40) / 200])
    torch.testing.assert_close(pixel_values, expected)


def test_a_larger_output_has_the_smaller_one_in_its_middle(processor):
    volume, spacing_mm = torch.randn(12, 20, 17) * 400, (1.3, 0.9, 1.1)
    larger = processor.resample(volume, spacing_mm, (8, 10, 12))
    assert larger.shape == (8, 10, 12)
    torch.testing.assert_close(larger[2:6, 1:9, 3:9], processor.resample(volume, spacing_mm))


def test_windows_stored_hounsfield_units_of_any_size_and_other_windows_when_asked(processor):
    stored = torch.tensor([-1024, -500, 3000], dtype=torch.int16).view(1, 1, 3)
    assert processor.window(stored).flatten().tolist() == [-1.0, -0.5, 1.0]
    jittered = processor.window(stored, [(-600.0, -200.0), (-1100.0, -1000.0)])
    assert jittered.shape == (2, 1, 1, 3)
    assert jittered.flatten().tolist() == pytest.approx([-1.0, -0.5, 1.0, 0.52, 1.0, 1.0])


def _thorax(has_lungs: bool) -> torch.Tensor:
    """A textured body in air, 4 mm voxels; boxes of lung fill z 30 to 55, y 18 to 49, x 14 to 69."""
    volume = torch.full((60, 70, 90), AIR_HU)
    volume[:, 10:60, 8:82] = WATER_HU
    volume[2:12, 30:40, 40:60] = AIR_HU  # gas in the bowel
    if has_lungs:
        volume[30:54, 20:46, 14:40] = -850.0
        volume[34:56, 18:50, 50:70] = -850.0
    return volume + torch.rand(volume.shape) * 40 - 20


@pytest.mark.parametrize("orientation", ["LPS", "RAS"])
def test_centers_on_the_bounding_box_of_the_lungs_when_asked(orientation):
    volume = _thorax(has_lungs=True)
    processor = CT3DImageProcessor((4.0, 4.0, 4.0), (12, 8, 24), [(-2000, 2000)], crop="lung")
    study = StubVolume(volume, (4.0, 4.0, 4.0), orientation)
    resampled = processor.resample(study)
    expected = volume[37:49, 30:38, 30:54]  # around 42.5, 33.5, 41.5
    torch.testing.assert_close(resampled, expected if orientation == "LPS" else expected.flip(-1, -2))
    processor.crop = "center"
    torch.testing.assert_close(processor.resample(volume, (4.0, 4.0, 4.0)), volume[24:36, 31:39, 33:57])


@pytest.mark.parametrize("orientation", ["LPS", "RAS"])
def test_says_where_the_middle_of_the_output_lies_in_the_study(orientation):
    volume = _thorax(has_lungs=True)
    study = StubVolume(volume, (4.0, 4.0, 4.0), orientation)
    processor = CT3DImageProcessor((4.0, 4.0, 4.0), (12, 8, 24), [(-2000, 2000)], crop="lung")
    assert processor.center(study) == processor.center(volume, (4.0, 4.0, 4.0)) == (42.5, 33.5, 41.5)
    assert torch.equal(processor.resample(study, center=(42.5, 33.5, 41.5)), processor.resample(study))
    processor.crop = "center"
    assert processor.center(study) == (29.5, 34.5, 44.5)
    shifted = processor.resample(volume, (4.0, 4.0, 4.0), center=(28.5, 36.5, 40.5))
    torch.testing.assert_close(shifted, volume[23:35, 33:41, 29:53])
    with pytest.raises(ValueError, match="spacings_mm must give the voxel size of every array, got None"):
        processor.center(volume)
    with pytest.raises(ValueError, match=r"must be \(Z, Y, X\) and not empty, got shape \(70, 90\)"):
        processor.center(volume[0], (4.0, 4.0, 4.0))


def test_centers_on_the_lungs_of_a_scan_with_smaller_voxels_within_a_cell():
    fine = _thorax(has_lungs=True).repeat_interleave(2, 1).repeat_interleave(4, 2)
    z, y, x = lung_center(fine, (4.0, 2.0, 1.0))
    # In millimeters from the first face; 5 mm cells place each edge within half a cell.
    assert (z + 0.5) * 4.0 == pytest.approx(43 * 4, abs=5)
    assert (y + 0.5) * 2.0 == pytest.approx(34 * 4, abs=5)
    assert (x + 0.5) * 1.0 == pytest.approx(42 * 4, abs=5)


def test_a_scan_without_lung_is_centered_on_itself_and_says_so():
    volume = _thorax(has_lungs=False)
    processor = CT3DImageProcessor((4.0, 4.0, 4.0), (4, 4, 4), [(-2000, 2000)], crop="lung")
    with pytest.warns(UserWarning, match=r"no lung in a volume of shape \(60, 70, 90\).*centered on itself"):
        resampled = processor.resample(volume, (4.0, 4.0, 4.0))
    torch.testing.assert_close(resampled, volume[28:32, 33:37, 43:47])


def test_turns_left_to_right_and_back_to_front_for_ras(processor):
    volume = torch.randn(SIZE) * 300
    ras = CT3DImageProcessor(SPACING_MM, SIZE, [(AIR_HU, BONE_HU)], orientation="RAS")
    expected = processor(volume, SPACING_MM)["pixel_values"].flip(-1, -2)
    assert torch.equal(ras(volume, SPACING_MM)["pixel_values"], expected)
    in_ras = StubVolume(volume.numpy(), orientation="RAS")
    assert torch.equal(processor(in_ras)["pixel_values"], expected)
    assert torch.equal(ras(in_ras)["pixel_values"], expected.flip(-1, -2))


def test_batches_volumes_of_different_sizes_and_kinds(processor):
    array = (np.random.default_rng(1).normal(size=(5, 9, 7)) * 300).astype(np.float32)
    tensor = torch.randint(-1000, 250, (3, 5, 4), dtype=torch.int16)
    batch = processor([array, tensor, StubVolume(array)], [(1.0, 2.0, 1.5), (2.0, 2.0, 2.0), None])
    assert batch["pixel_values"].shape == (3, 1, *SIZE)
    for row, (image, spacing) in enumerate([(array, (1.0, 2.0, 1.5)), (tensor, (2.0, 2.0, 2.0))]):
        assert torch.equal(batch["pixel_values"][row], processor(image, spacing)["pixel_values"][0])
    assert torch.equal(batch["pixel_values"][2], processor(array, SPACING_MM)["pixel_values"][0])


@pytest.mark.parametrize(
    "spacing", [SPACING_MM, [SPACING_MM], np.array(SPACING_MM), torch.tensor(SPACING_MM)]
)
def test_takes_a_single_study_with_its_spacing_in_any_form(processor, spacing):
    volume = torch.randn(5, 9, 7) * 300
    expected = processor([volume], [SPACING_MM])["pixel_values"]
    assert torch.equal(processor(volume, spacing)["pixel_values"], expected)


def test_takes_numpy_arrays_that_torch_cannot_share(processor):
    array = np.random.default_rng(2).integers(-1000, 1000, (6, 9, 7)).astype(np.int16)
    expected = processor(array.copy(), SPACING_MM)["pixel_values"]
    assert torch.equal(processor(array[::-1].copy()[::-1], SPACING_MM)["pixel_values"], expected)
    array.flags.writeable = False
    assert torch.equal(processor(array, SPACING_MM)["pixel_values"], expected)


def test_does_not_change_its_input(processor):
    volume = torch.full((4, 8, 6), 3000.0)
    volume[0] = -1400.0
    processor(volume, SPACING_MM)
    assert volume.unique().tolist() == [-1400.0, 3000.0]


def test_keeps_no_graph_of_its_input(processor):
    volume = torch.linspace(-900, 100, 192).view(SIZE).requires_grad_()
    assert not processor(volume, SPACING_MM)["pixel_values"].requires_grad


def test_returns_numpy_when_asked(processor):
    pixel_values = processor(torch.randn(SIZE) * 500, SPACING_MM, return_tensors="np")["pixel_values"]
    assert isinstance(pixel_values, np.ndarray)
    assert pixel_values.shape == (1, 1, *SIZE)


def test_hands_files_to_its_reader(processor, monkeypatch):
    array = np.full(SIZE, 500, dtype=np.int16)
    monkeypatch.setattr(
        CT3DImageProcessor, "reader", staticmethod(lambda path: StubVolume(array + len(path)))
    )
    assert processor("four")["pixel_values"].unique().tolist() == pytest.approx([0.504])
    assert processor(["four", "sixsix"])["pixel_values"][1].unique().tolist() == pytest.approx([0.506])


def test_saves_every_setting_and_reloads(tmp_path):
    settings = {
        "spacing_mm": [2.5, 1.25, 1.0],
        "size": [4, 8, 6],
        "windows_hu": [[-1000.0, 200.0], [-160.0, 240.0]],
        "fill_hu": -1024.0,
        "orientation": "RAS",
        "antialias": False,
        "crop": "lung",
        "cache_size": [6, 8, 10],
    }
    processor = CT3DImageProcessor(**settings)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {key: saved[key] for key in settings} == settings
    assert "reader" not in saved
    reloaded = CT3DImageProcessor.from_pretrained(tmp_path)
    assert reloaded.to_dict() == processor.to_dict()
    volume, spacing = torch.randn(5, 9, 7) * 500, (1.7, 0.8, 0.8)
    processor.crop = reloaded.crop = "center"  # noise has no lung
    assert torch.equal(processor(volume, spacing)["pixel_values"], reloaded(volume, spacing)["pixel_values"])


def test_ships_the_settings_of_the_published_network():
    processor = CT3DImageProcessor()
    assert (processor.spacing_mm, processor.size) == ((3.0, 1.5, 1.5), (96, 192, 192))
    assert (processor.windows_hu, processor.fill_hu) == (((-1000.0, 200.0),), -1000.0)
    assert processor.orientation == "LPS"
    assert (processor.antialias, processor.crop, processor.cache_size) == (True, "center", None)


SETTING_REFUSALS = [
    ({"spacing_mm": (3.0, 0.0, 1.5)}, r"spacing_mm must be 3 positive.*got \(3\.0, 0\.0, 1\.5\)"),
    ({"spacing_mm": (3.0, 1.5)}, r"spacing_mm must be 3 positive.*got \(3\.0, 1\.5\)"),
    ({"spacing_mm": (3.0, float("nan"), 1.5)}, r"spacing_mm must be 3 positive.*nan"),
    ({"size": (96, 192)}, r"size must be 3 positive.*got \(96, 192\)"),
    ({"size": (96, -1, 192)}, r"size must be 3 positive.*got \(96, -1, 192\)"),
    ({"size": (96, 19.2, 192)}, r"size must be 3 positive.*got \(96, 19\.2, 192\)"),
    ({"windows_hu": [(240.0, -160.0)]}, r"low < high, got \(240\.0, -160\.0\)"),
    ({"windows_hu": [(-1000, 200), (5, 5)]}, r"low < high, got \(5, 5\)"),
    ({"windows_hu": [(-1000, float("inf"))]}, r"low < high, got \(-1000, inf\)"),
    ({"windows_hu": [(-1000, 0, 200)]}, r"low < high, got \(-1000, 0, 200\)"),
    ({"windows_hu": []}, "at least one"),
    ({"fill_hu": -3024.0}, r"fill_hu must lie in .*got -3024\.0"),
    ({"fill_hu": float("nan")}, "fill_hu must lie in .*got nan"),
    ({"spacing_mm": (3.0, 51.0, 1.5)}, r"spacing_mm must be at most 50 mm, got \(3\.0, 51\.0, 1\.5\)"),
    ({"crop": "heart"}, r"crop must be one of \('center', 'lung'\), got 'heart'"),
    ({"size": (4, 6, 8), "cache_size": (4, 8)}, r"cache_size must be 3 positive.*got \(4, 8\)"),
    (
        {"size": (4, 6, 8), "cache_size": (4, 4, 8)},
        r"size \(4, 6, 8\) by an even number.*got \(4, 4, 8\)",
    ),
    (
        {"size": (4, 6, 8), "cache_size": (4, 9, 8)},
        r"size \(4, 6, 8\) by an even number.*got \(4, 9, 8\)",
    ),
    ({"orientation": "RPS"}, r"orientation must be one of \('LPS', 'RAS'\), got 'RPS'"),
]


@pytest.mark.parametrize(("settings", "message"), SETTING_REFUSALS)
def test_refuses_a_setting_also_when_it_is_overridden_at_reload(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CT3DImageProcessor(**settings)
    CT3DImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        CT3DImageProcessor.from_pretrained(tmp_path, **settings)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_refuses_an_antialias_that_is_not_a_truth_value(value):
    with pytest.raises(TypeError, match=f"antialias must be true or false, got {value!r}"):
        CT3DImageProcessor(antialias=value)


def test_refuses_stored_values_with_padding_below_air():
    hu = torch.full((6, 12, 12), -1000, dtype=torch.int16)
    hu[:, 3:9, 3:9] = 40
    stored = hu + 1024
    hu[:, 0], stored[:, 0] = -2000, -2000
    processor = CT3DImageProcessor(size=(4, 4, 4), spacing_mm=(3, 3, 3))
    assert processor(hu, [3, 3, 3])["pixel_values"].shape == (1, 1, 4, 4, 4)
    with pytest.raises(ValueError, match="got values from -2000 to 1064, none of them air"):
        processor(stored, [3, 3, 3])


@pytest.mark.parametrize(
    ("scale", "shift", "message"),
    [
        (1 / 4000, 0.25, r"from 0 to 0\.75, none of them air.*undo the normalization"),
        (1 / 1000, 0.0, r"from -1 to 2, none of them air.*undo the normalization"),
        (1, 1024, r"from 24 to 3024, none of them air.*Apply RescaleSlope and RescaleIntercept"),
        (1, -2600, r"from -3600 to -600, none of them tissue.*RescaleIntercept once"),
    ],
)
def test_refuses_bare_arrays_that_cannot_be_hounsfield_units(processor, scale, shift, message):
    hu = torch.linspace(-1000, 2000, 192).view(SIZE)
    processor(hu, SPACING_MM)
    with pytest.raises(ValueError, match=message):
        processor(hu * scale + shift, SPACING_MM)
    with pytest.raises(ValueError, match=message):
        processor.resample((hu * scale + shift).numpy(), SPACING_MM)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.bool, torch.complex64])
def test_refuses_stored_values_that_are_not_hounsfield_units(processor, dtype):
    with pytest.raises(TypeError, match=rf"{dtype}.*RescaleIntercept"):
        processor([torch.zeros(SIZE, dtype=dtype)], [SPACING_MM])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_voxels_that_are_not_finite(processor, bad):
    volume = torch.zeros(SIZE)
    volume[1, 2, 3] = bad
    with pytest.raises(ValueError, match=rf"must be finite, got values from .*{str(bad).lstrip('-')}"):
        processor(volume, SPACING_MM)


@pytest.mark.parametrize("shape", [(1, 4, 8, 6), (8, 6), (4, 0, 6)])
def test_refuses_a_volume_that_is_not_z_y_x(processor, shape):
    with pytest.raises(ValueError, match=rf"\(Z, Y, X\) and not empty, got shape \({shape[0]}, {shape[1]}"):
        processor([torch.zeros(shape)], [SPACING_MM])


@pytest.mark.parametrize("spacing", [(2.0, 0.0, 1.0), (2.0, -1.0, 1.0), (2.0, float("inf"), 1.0), (2.0, 1.0)])
def test_refuses_a_spacing_that_is_not_three_positive_millimeters(processor, spacing):
    with pytest.raises(ValueError, match=rf"spacings_mm must be 3 positive.*got \(2\.0, {spacing[1]}"):
        processor([torch.zeros(SIZE)], [spacing])
    with pytest.raises(ValueError, match="spacing_mm of the volume must be 3 positive"):
        processor(StubVolume(np.zeros(SIZE), spacing))


def test_refuses_a_spacing_that_cannot_be_millimeters(processor):
    with pytest.raises(ValueError, match=r"spacings_mm must be at most 50 mm, got \(300\.0, 70\.0, 70\.0\)"):
        processor(torch.randn(SIZE) * 500, (300.0, 70.0, 70.0))
    processor.spacing_mm = (50.0, 50.0, 50.0)
    processor(torch.randn(SIZE) * 500, (50.0, 50.0, 50.0))


def test_refuses_lists_of_different_lengths(processor):
    with pytest.raises(ValueError, match="one entry per study, got 1 for 2"):
        processor([torch.zeros(SIZE)] * 2, [SPACING_MM])
    with pytest.raises(ValueError, match="one entry per study, got 3 for 1"):
        processor([torch.zeros(SIZE)], SPACING_MM)


def test_refuses_an_array_without_its_spacing(processor):
    with pytest.raises(ValueError, match="voxel size of every array, got None"):
        processor([torch.zeros(SIZE)])


def test_refuses_a_second_spacing_for_a_volume(processor):
    with pytest.raises(ValueError, match=r"None for a StubVolume, got \(9\.0, 1\.0, 1\.0\)"):
        processor(StubVolume(np.zeros(SIZE)), (9.0, 1.0, 1.0))


def test_refuses_an_unknown_orientation_of_a_volume(processor):
    with pytest.raises(ValueError, match="got 'SPL'"):
        processor(StubVolume(np.zeros(SIZE), orientation="SPL"))


def test_refuses_an_empty_batch(processor):
    with pytest.raises(ValueError, match=r"at least one study, got \[\]"):
        processor([], [])


def test_refuses_a_volume_thinner_than_one_output_voxel(processor):
    with pytest.raises(ValueError, match=r"got 1 voxels of 0\.5 mm for 2\.0 mm"):
        processor(torch.linspace(-900, 100, 48).view(1, 8, 6), (0.5, 1.0, 1.0))


def test_refuses_a_path_when_no_reader_is_set(processor, monkeypatch):
    monkeypatch.setattr(CT3DImageProcessor, "reader", None)
    with pytest.raises(TypeError, match=r"got str.*install the radtower package"):
        processor("scan.nii.gz")
