import numpy as np
import pytest

from radtower.demo.phantom_canvas import Canvas, smooth_field

SPACING_MM = (3.0, 2.0, 2.0)


def _canvas(rotation=0.0):
    return Canvas((50, 70, 80), SPACING_MM, (-73.5, -69.0, -79.0), rotation)


def _painted_ml(canvas):
    """Volume that was painted at 0 HU into air at -1000 HU."""
    return float((canvas.volume_hu / 1000 + 1).sum()) * float(np.prod(SPACING_MM)) / 1000


@pytest.mark.parametrize("rotation", [0.0, 0.3])
def test_ellipsoid_has_its_volume(rotation):
    canvas = _canvas(rotation)
    canvas.paint_ellipsoid((10.0, -5.0, 12.0), (30.0, 22.0, 41.0), 0.0)
    assert _painted_ml(canvas) == pytest.approx(4 / 3 * np.pi * 3.0 * 2.2 * 4.1, rel=0.03)


def test_tilted_ellipsoid_has_its_volume_and_direction():
    canvas = _canvas()
    axes = np.array([[0.6, 0.8, 0.0], [-0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    canvas.paint(*canvas.ellipsoid((0.0, 0.0, 0.0), (45.0, 15.0, 20.0), axes), 0.0)
    assert _painted_ml(canvas) == pytest.approx(4 / 3 * np.pi * 4.5 * 1.5 * 2.0, rel=0.04)
    z, y, _ = np.nonzero(canvas.volume_hu > -500)
    slope = np.polyfit(canvas.z_mm[z], canvas.y_mm[y, 0], 1)[0]
    assert slope > 0.5


def test_tube_has_the_volume_of_a_cylinder_with_round_ends():
    canvas = _canvas()
    canvas.paint_tubes([(-40.0, 10.0, -20.0), (30.0, -10.0, 35.0)], [8.0, 8.0], 0.0)
    length = np.linalg.norm([70, 20, 55])
    expected = np.pi * 64 * length + 4 / 3 * np.pi * 512
    assert _painted_ml(canvas) == pytest.approx(expected / 1000, rel=0.04)


def test_rotation_turns_points_about_the_body_axis():
    canvas = _canvas(rotation=0.3)
    canvas.paint_ellipsoid((0.0, 0.0, 50.0), (8.0, 8.0, 8.0), 0.0)
    _, rows, columns = np.nonzero(canvas.volume_hu > -500)
    assert canvas.table_y_mm[rows, columns].mean() == pytest.approx(50 * np.sin(0.3), abs=1.5)
    assert canvas.table_x_mm[rows, columns].mean() == pytest.approx(50 * np.cos(0.3), abs=1.5)
    assert canvas.x_mm[rows, columns].mean() == pytest.approx(50, abs=1.5)


def test_what_lies_outside_the_volume_is_not_painted():
    canvas = _canvas()
    canvas.paint_ellipsoid((500.0, 0.0, 0.0), (20.0, 20.0, 20.0), 0.0)
    assert _painted_ml(canvas) == 0


def test_painting_hides_lung_unless_told_otherwise():
    canvas = _canvas()
    canvas.lung[:] = 1
    shape = canvas.ellipsoid((0.0, 0.0, 0.0), (15.0, 15.0, 15.0))
    canvas.paint(*shape, 0.0, hides_lung=False)
    assert canvas.lung.min() == 1
    canvas.paint(*shape, 0.0)
    assert canvas.lung[25, 35, 40] == 0
    assert canvas.lung[0, 0, 0] == 1


def test_smooth_field_is_smooth_and_of_about_unit_variance():
    field = smooth_field(np.random.default_rng(0), (60, 70, 80), (12, 10, 9))
    assert field.shape == (60, 70, 80)
    assert field.std() == pytest.approx(1, abs=0.15)
    assert np.abs(np.diff(field, axis=2)).mean() < 0.25 * field.std()
