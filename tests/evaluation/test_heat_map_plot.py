import numpy as np
import pytest
from PIL import Image

from radtower.evaluation.heat_maps import HeatMap
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing

pytest.importorskip("matplotlib")
from radtower.evaluation.heat_map_plot import (
    EVIDENCE_COLORS,
    _title,
    check_picture_path,
    in_words,
    plot_heat_map,
)

SPACING_MM = (5.0, 2.0, 2.0)
SHAPE = (20, 60, 40)  # 100 x 120 x 80 mm


def _heat_map(values, hu=-850):
    """A scan of one density with evidence in boxes: ``{(z, y, x): value}``, 10 mm around each."""
    array = np.zeros(SHAPE, np.float32)
    for (z, y, x), value in values.items():
        array[z - 1 : z + 2, y - 3 : y + 3, x - 3 : x + 3] = value
    volume = Volume(
        np.full(SHAPE, hu, np.int16),
        SPACING_MM,
        affine_from_spacing(SPACING_MM),
        "LPS",
        VolumeSource("t", "n"),
    )
    seen = ((2, 18), (0, 60), (5, 35))
    return HeatMap(array, volume, 1.5, 1.0, 2.0, (20.0, 16.0, 16.0), seen)


def _pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def _spots(pixels, is_color):
    """Columns of the three panels in which a color is, as (first, last) of each run."""
    panels = pixels[:, : int(0.9 * pixels.shape[1])]  # without the color bar
    columns = np.flatnonzero(is_color(panels).any(axis=0))
    return [(run[0], run[-1]) for run in np.split(columns, np.flatnonzero(np.diff(columns) > 20) + 1)]


def _is_red(pixels):
    return (pixels[..., 0] > 120) & (pixels[..., 1] < 0.6 * pixels[..., 0]) & (pixels[..., 2] < 80)


def _is_blue(pixels):
    return (pixels[..., 2] > 120) & (pixels[..., 0] < 0.7 * pixels[..., 2])


def test_evidence_for_is_red_in_all_three_planes_and_to_scale(tmp_path):
    path = plot_heat_map(_heat_map({(10, 20, 10): 2.0}), "Nodule", "Not for diagnosis.", tmp_path / "a.png")
    assert path == tmp_path / "a.png"
    pixels = _pixels(path)
    spots = _spots(pixels, _is_red)
    assert len(spots) == 3
    # 6 voxels of 2 mm in X, X and Y: one width on the screen, since the panels have one scale.
    widths = [last - first for first, last in spots]
    assert max(widths) - min(widths) <= 4


def test_evidence_against_is_blue_and_as_strong_as_its_share(tmp_path):
    plain = _pixels(plot_heat_map(_heat_map({(10, 20, 10): 2.0}), "N", "n", tmp_path / "a.png"))
    against = _heat_map({(10, 20, 10): 2.0, (10, 45, 30): -2.0})
    pixels = _pixels(plot_heat_map(against, "N", "n", tmp_path / "b.png"))
    assert _is_blue(pixels).sum() > _is_blue(plain).sum() + 500
    weak = _heat_map({(10, 20, 10): 2.0, (10, 45, 30): -0.1})
    faint = _pixels(plot_heat_map(weak, "N", "n", tmp_path / "c.png"))
    assert abs(_is_blue(faint).sum() - _is_blue(plain).sum()) < 50


def test_the_head_is_on_top_and_the_right_side_is_on_the_left(tmp_path):
    heat_map = _heat_map({(14, 20, 10): 2.0}, hu=40)  # the middle of the soft tissue window
    heat_map.volume.array_hu[10:, :30, :20] = 240  # its upper end: head, front and right of the patient
    pixels = _pixels(plot_heat_map(heat_map, "N", "n", tmp_path / "a.png"))
    is_gray = np.abs(pixels - 128).max(axis=-1) <= 2
    is_white = (pixels >= 250).all(axis=-1)
    columns = np.flatnonzero(is_gray.sum(axis=0) > 100)
    panels = np.split(columns, np.flatnonzero(np.diff(columns) > 4) + 1)
    assert len(panels) == 3
    for panel in panels:
        gray, white = (
            np.argwhere(mask[:, panel[0] : panel[-1] + 1]).mean(axis=0) for mask in (is_gray, is_white)
        )
        assert (gray - white > 20).all(), (gray, white)  # white is higher up and farther left


@pytest.mark.parametrize(("hu", "gray"), [(-850, 85), (40, 128)])
def test_the_window_follows_what_is_around_the_peak(tmp_path, hu, gray):
    """-850 HU is a third of the lung window, 40 HU the middle of the soft tissue window."""
    pixels = _pixels(plot_heat_map(_heat_map({(10, 20, 10): 2.0}, hu), "N", "n", tmp_path / "a.png"))
    assert (np.abs(pixels - gray).max(axis=-1) <= 2).sum() > 20_000


def test_a_map_without_evidence_can_be_drawn(tmp_path):
    pixels = _pixels(plot_heat_map(_heat_map({}), "N", "n", tmp_path / "a.png"))
    assert not _is_red(pixels[:, : int(0.9 * pixels.shape[1])]).any()
    assert (np.abs(pixels - 85).max(axis=-1) <= 2).sum() > 20_000


def test_a_map_without_evidence_for_the_finding_says_so():
    heat_map = _heat_map({})
    heat_map.array[2:18, :, 5:35] = -1.0
    heat_map.array[4, 10, 6] = -0.5
    at = in_words(heat_map.peak_mm)
    assert at == "L 12, P 20, H 20 mm"
    assert f"no evidence for the finding; the least against it lies at {at}" in _title(heat_map, "N", "lung")
    heat_map.array[4, 10, 6] = 0.5
    title = _title(heat_map, "Nodule", "lung")
    assert title.startswith("Nodule: score 0.82, uncalibrated (logit +1.50)")
    assert f"slices through the strongest evidence, at {at} of the scanner; lung window, -1350 to" in title


def test_pictures_that_cannot_be_written_are_refused(tmp_path):
    for name in ("a.jpg", "a"):
        with pytest.raises(ValueError, match=rf"png must end in \.png, got .*{name}"):
            check_picture_path(tmp_path / name)
    with pytest.raises(ValueError, match=r"png must be a file in a folder that exists, got .*no.a\.png"):
        plot_heat_map(_heat_map({}), "N", "n", tmp_path / "no" / "a.png")
    check_picture_path(tmp_path / "a.PNG")


def test_the_same_map_gives_the_same_file_without_metadata(tmp_path):
    heat_map = _heat_map({(10, 20, 10): 2.0})
    first = plot_heat_map(heat_map, "N", "n", tmp_path / "a.png")
    again = plot_heat_map(heat_map, "N", "n", tmp_path / "b.png")
    assert first.read_bytes() == again.read_bytes()
    with Image.open(first) as image:
        assert set(image.info) <= {"dpi"}


def test_the_note_and_the_finding_are_in_the_picture(tmp_path):
    heat_map = _heat_map({(10, 20, 10): 2.0})
    pictures = [
        _pixels(plot_heat_map(heat_map, *texts, tmp_path / f"{number}.png"))
        for number, texts in enumerate((("Nodule", "Not."), ("Hernia", "Not."), ("Nodule", "No.")))
    ]
    height = pictures[0].shape[0]
    for other, rows in ((1, slice(0, height // 6)), (2, slice(height * 9 // 10, height))):
        differs = (pictures[0] != pictures[other]).any(axis=(1, 2))
        assert differs.any()
        assert not np.delete(differs, np.arange(height)[rows]).any()


def test_colors_are_clear_where_there_is_no_evidence():
    assert EVIDENCE_COLORS(0.5)[3] == 0
    assert EVIDENCE_COLORS(0.0)[3] == EVIDENCE_COLORS(1.0)[3] == 0.65


def test_positions_are_written_with_the_letters_of_the_patient():
    assert in_words((31.2, -12.0, 140.0)) == "R 31, P 12, H 140 mm"
    assert in_words((-3.0, 5.0, -0.6)) == "L 3, A 5, F 1 mm"
