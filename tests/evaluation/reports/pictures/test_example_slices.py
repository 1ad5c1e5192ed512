import numpy as np
import pytest

pytest.importorskip("matplotlib")

from radtower.evaluation.reports.pictures.drawing import png_bytes
from radtower.evaluation.reports.pictures.example_slices import draw_example_slices

WINDOWS = [[-1000.0, 200.0], [-160.0, 240.0]]


@pytest.fixture
def volume():
    """A bright voxel in the middle, and one at the head end of it."""
    volume = np.full((6, 8, 10), -1000.0, dtype=np.float32)
    volume[3, 4, 5] = 200
    volume[5, 4, 5] = 100
    return volume


def _images(figure):
    return [axes.images[0] for axes in figure.axes]


def test_middle_slices_in_every_window_with_the_head_on_top(volume):
    figure = draw_example_slices(volume, (3.0, 1.5, 2.0), WINDOWS, "Not for diagnosis.")
    images = _images(figure)
    assert [image.get_array().shape for image in images] == [(8, 10), (6, 10), (6, 8)] * 2
    axial, coronal, sagittal = (np.asarray(image.get_array()) for image in images[:3])
    assert axial[4, 5] == 200
    assert (coronal[2, 5], coronal[0, 5]) == (200, 100)
    assert (sagittal[2, 4], sagittal[0, 4]) == (200, 100)
    assert [image.get_clim() for image in images] == [(-1000, 200)] * 3 + [(-160, 240)] * 3
    assert [axes.get_aspect() for axes in figure.axes[:3]] == [0.75, 1.5, 2.0]
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "axial, -1000 to 200 HU"
    assert titles[5] == "sagittal, -160 to 240 HU"
    # The first column of an LPS volume is the right side of the patient, its first row the front.
    assert [text.get_text() for text in figure.axes[0].texts] == ["R", "L", "A", "P"]
    assert [text.get_text() for text in figure.axes[2].texts] == ["A", "P", "H", "F"]
    assert figure.get_suptitle() == "Not for diagnosis."


def test_the_same_scan_gives_the_same_picture(volume):
    first, again = (png_bytes(draw_example_slices(volume, (1, 1, 1), WINDOWS, "n")) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(("shape", "windows"), [((4, 4), WINDOWS), ((4, 4, 4), [])])
def test_what_cannot_be_drawn_is_refused(shape, windows):
    with pytest.raises(ValueError, match=r"must be \(Z, Y, X\) with a window, got shape"):
        draw_example_slices(np.zeros(shape), (1, 1, 1), windows, "n")
