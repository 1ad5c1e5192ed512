import numpy as np
import pytest
from PIL import Image

from radtower.evaluation.plots import plot_scan_with_findings

pytest.importorskip("matplotlib")


def _draw(path, scores=(0.9, 0.2), is_present=(True, False)):
    volume = np.full((6, 10, 8), -1000, dtype=np.int16)
    volume[2:5, 3:7, 2:6] = 40
    names = ("lung_nodule", "pleural_effusion")
    return plot_scan_with_findings(
        volume,
        (5.0, 2.0, 2.5),
        dict(zip(names, scores, strict=True)),
        dict(zip(names, is_present, strict=True)),
        "Phantom. Not for diagnosis.",
        path,
    )


def _num_pixels(path, color):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    rgb = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    return int((np.abs(pixels - rgb).max(axis=-1) <= 2).sum())


def test_bars_are_as_long_as_the_scores_and_colored_by_the_truth(tmp_path):
    path = _draw(tmp_path / "scan.png")
    assert path == tmp_path / "scan.png"
    red, blue = _num_pixels(path, "#c0504d"), _num_pixels(path, "#4f81bd")
    assert red / blue == pytest.approx(0.9 / 0.2, rel=0.1)
    swapped = _draw(tmp_path / "swapped.png", is_present=(False, True))
    assert _num_pixels(swapped, "#4f81bd") == pytest.approx(red, rel=0.1)


def test_the_same_scan_gives_the_same_file_without_metadata(tmp_path):
    first, again = _draw(tmp_path / "a.png"), _draw(tmp_path / "b.png")
    assert first.read_bytes() == again.read_bytes()
    with Image.open(first) as image:
        assert set(image.info) <= {"dpi"}
