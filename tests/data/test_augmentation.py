import numpy as np
import pytest
import torch

from radtower.data.augmentation import VolumeAugmentation
from radtower.processing.image_processing_ct3d import CT3DImageProcessor

SIZE, KEPT, SPACING_MM = (6, 8, 10), (10, 14, 18), (4.0, 2.0, 3.0)
WINDOW_HU = (-1000.0, 1000.0)


def _augmentation(seed=0, size=SIZE, windows_hu=(WINDOW_HU,), **strengths) -> VolumeAugmentation:
    processor = CT3DImageProcessor(SPACING_MM, size, windows_hu)
    return VolumeAugmentation(image_processor=processor, seed=seed, **strengths)


@pytest.fixture
def volume() -> torch.Tensor:
    """Every voxel tells its place: 100 z + 10 y + x - 900."""
    z, y, x = (torch.arange(n) for n in KEPT)
    return (100 * z[:, None, None] + 10 * y[:, None] + x - 900).to(torch.int16)


def test_without_strengths_it_is_a_crop_from_anywhere_in_the_margin(volume):
    augmentation = _augmentation()
    corners = set()
    for epoch in range(300):
        hu = augmentation(volume, epoch, 7) * 1000
        assert hu.shape == (1, *SIZE)
        first = round(hu[0, 0, 0, 0].item()) + 900
        corner = (first // 100, first % 100 // 10, first % 10)
        z, y, x = (slice(start, start + n) for start, n in zip(corner, SIZE, strict=True))
        torch.testing.assert_close(hu[0], volume[z, y, x].float(), atol=1e-3, rtol=0)
        corners.add(corner)
    for axis in range(3):
        assert {corner[axis] for corner in corners} == set(range(KEPT[axis] - SIZE[axis] + 1))


def test_the_same_seed_epoch_and_index_give_the_same_and_others_do_not(volume):
    strengths = {
        "max_rotation_degrees": 10,
        "max_scaling": 0.1,
        "max_noise_hu": 30,
        "max_window_shift_hu": 50,
    }
    given = _augmentation(seed=1, **strengths)(volume, 2, 3)
    torch.manual_seed(99)  # no global state
    assert torch.equal(given, _augmentation(seed=1, **strengths)(volume, 2, 3))
    for seed, epoch, index in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (1, 3, 2)]:
        assert not torch.equal(given, _augmentation(seed=seed, **strengths)(volume, epoch, index))


def test_does_not_change_its_input(volume):
    before = volume.clone()
    _augmentation(max_noise_hu=50, max_rotation_degrees=5)(volume, 0, 0)
    assert torch.equal(volume, before)


def test_an_affine_of_almost_nothing_is_the_crop(volume):
    for epoch in range(5):
        crop = _augmentation()(volume, epoch, 0)
        affine = _augmentation(max_rotation_degrees=1e-6)(volume, epoch, 0)
        torch.testing.assert_close(affine, crop, atol=1e-4, rtol=0)


def _varied_inside(augmentation, volume, num_epochs) -> list[torch.Tensor]:
    """Outputs in HU that saw no fill, which is lower than anything in a volume that rises along X."""
    outputs = [augmentation(volume, epoch, 0)[0] * 1000 for epoch in range(num_epochs)]
    inside = [hu for hu in outputs if hu.min() >= volume.min() - 0.01 and hu.diff(dim=2).min() > 0]
    assert len(inside) > num_epochs / 4
    return inside


def test_turns_by_an_angle_in_millimeters_and_not_in_voxels():
    # The volume tells its place along X in millimeters; after a turn, what one step along an output axis goes
    # along X is a cosine or sine times the millimeters of that step.
    size = (8, 8, 8)
    x_mm = torch.arange(60) * SPACING_MM[2]
    volume = (x_mm.expand(60, 60, 60) - 90).to(torch.int16)
    for hu in _varied_inside(_augmentation(size=size, max_rotation_degrees=20.0), volume, 20):
        along = torch.stack(
            [hu.diff(dim=axis).mean() / mm for axis, mm in zip(range(3), SPACING_MM, strict=True)]
        )
        # A row of a rotation matrix: unit length; in voxels instead of millimeters it would not be.
        assert along.norm().item() == pytest.approx(1.0, abs=1e-3)
        assert 0.8 < along[2] < 1 - 1e-6


def test_zooms_by_up_to_the_stated_fraction():
    volume = (torch.arange(24) * 10 - 120).expand(24, 24, 24).to(torch.int16)
    inside = _varied_inside(_augmentation(size=(4, 4, 4), max_scaling=0.2), volume, 200)
    steps = torch.stack([hu.diff(dim=2).mean() for hu in inside])
    zooms = 10 / steps
    assert 0.8 <= zooms.min() < 0.83
    assert 1.17 < zooms.max() <= 1.2


def test_outside_the_cache_is_fill():
    volume = torch.full((8, 8, 8), 500, dtype=torch.int16)
    processor = CT3DImageProcessor((1.0, 1.0, 1.0), (8, 8, 8), [WINDOW_HU], fill_hu=-700.0)
    augmentation = VolumeAugmentation(image_processor=processor, seed=0, max_scaling=0.5)
    smallest = min((augmentation(volume, epoch, 0) for epoch in range(20)), key=lambda out: out.mean())
    assert smallest[0, 0, 0, 0].item() == pytest.approx(-0.7, abs=1e-6)
    assert smallest[0, 4, 4, 4].item() == pytest.approx(0.5, abs=1e-6)


def test_adds_noise_of_up_to_the_stated_deviation():
    volume = torch.zeros(24, 24, 24, dtype=torch.int16)
    augmentation = _augmentation(size=(24, 24, 24), max_noise_hu=40.0)
    deviations = torch.stack([(augmentation(volume, epoch, 0) * 1000).std() for epoch in range(60)])
    assert deviations.min() < 4
    assert 36 < deviations.max() < 41
    assert deviations.mean().item() == pytest.approx(20, abs=4)


def test_moves_each_end_of_each_window():
    volume = torch.zeros(SIZE, dtype=torch.int16)
    augmentation = _augmentation(windows_hu=[(-1000, 1000), (-160, 240)], max_window_shift_hu=50.0)
    values = torch.stack([augmentation(volume, epoch, 0)[:, 0, 0, 0] for epoch in range(200)])
    # 0 HU in [-1000 + a, 1000 + b]: between (1000 - 50) / 2000 and (1000 + 50) / 2000 of the way, if a = b.
    assert values[:, 0].abs().max().item() == pytest.approx(0.05, abs=0.01)
    assert values[:, 1].min().item() == pytest.approx(-0.45, abs=0.05)
    assert values[:, 1].max().item() == pytest.approx(0.05, abs=0.05)
    assert abs(np.corrcoef(values.T.numpy())[0, 1]) < 0.2


def test_exchanges_left_and_right_only_when_asked(volume):
    cropped = volume[: SIZE[0], : SIZE[1], : SIZE[2]]
    plain = [_augmentation()(cropped, epoch, 0) for epoch in range(40)]
    assert all(torch.equal(out, plain[0]) for out in plain)
    flipped = [
        torch.equal(_augmentation(flip_probability=0.25)(cropped, epoch, 0), plain[0].flip(-1))
        for epoch in range(400)
    ]
    assert np.mean(flipped) == pytest.approx(0.25, abs=0.07)


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        ({"max_rotation_degrees": 46.0}, "max_rotation_degrees must be between 0 and 45, got 46"),
        ({"max_scaling": -0.1}, r"max_scaling must be between 0 and 0\.5, got -0\.1"),
        ({"max_noise_hu": float("nan")}, "max_noise_hu must be between 0 and 1000, got nan"),
        ({"flip_probability": 1.5}, r"flip_probability must be between 0 and 1, got 1\.5"),
        ({"max_window_shift_hu": 2000.0}, "max_window_shift_hu must be between 0 and 1000, got 2000"),
        (
            {"max_window_shift_hu": 200.0, "windows_hu": [(-1000, 200), (-160, 240)]},
            r"half of the narrowest window of 400 HU, got 200\.0",
        ),
    ],
)
def test_refuses_a_strength_out_of_range(strength, message):
    with pytest.raises(ValueError, match=message):
        _augmentation(**strength)


def test_refuses_a_volume_smaller_than_the_output(volume):
    with pytest.raises(ValueError, match=r"at least \(6, 8, 10\), got shape \(10, 7, 18\)"):
        _augmentation()(volume[:, :7], 0, 0)
