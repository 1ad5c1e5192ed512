"""Devices inside the patient, painted into a phantom: the finding "medical material"."""

from collections.abc import Callable

import numpy as np

from radtower.demo.phantom_anatomy import LEFT, RIGHT, Anatomy
from radtower.demo.phantom_canvas import Point

_SIDES = {RIGHT: "right", LEFT: "left"}


def _paint_pacemaker(anatomy: Anatomy, rng: np.random.Generator, hu: float) -> tuple[str, float]:
    sign = LEFT if rng.random() < 0.75 else RIGHT
    can = _chest_wall(anatomy, sign * 68.0, 42.0)
    anatomy.canvas.paint_ellipsoid(can, (26.0, 9.0, 28.0), hu)
    heart = anatomy.heart_center_mm
    lead = [can, (60.0, -22.0, -22.0), (-30.0, -15.0, -28.0), (heart[0] - 15, heart[1] - 10, heart[2] + 10)]
    anatomy.canvas.paint_tubes(lead, [3.0, 3.0, 3.0, 3.6], hu)
    return _SIDES[sign], 52.0


def _paint_port(anatomy: Anatomy, rng: np.random.Generator, hu: float) -> tuple[str, float]:
    sign = RIGHT if rng.random() < 0.7 else LEFT
    reservoir = _chest_wall(anatomy, sign * 62.0, 30.0)
    anatomy.canvas.paint_ellipsoid(reservoir, (17.0, 9.0, 17.0), hu)
    catheter = [reservoir, (85.0, -30.0, sign * 52.0), (70.0, -20.0, sign * 30.0), (-30.0, -15.0, -28.0)]
    anatomy.canvas.paint_tubes(catheter, [3.4, 3.4, 3.4, 3.4], max(900.0, 0.6 * hu))
    return _SIDES[sign], 30.0


def _paint_sternal_wires(anatomy: Anatomy, rng: np.random.Generator, hu: float) -> tuple[str, float]:
    y = -anatomy.habitus.lung_half_depth_mm - 12
    for z in np.linspace(-55, 60, int(rng.integers(5, 8))).tolist():
        anatomy.canvas.paint_tubes([(z - 4, y, -15.0), (z + 4, y, 15.0)], [4.0, 4.0], hu)
    return "midline", 30.0


def _paint_spinal_rods(anatomy: Anatomy, rng: np.random.Generator, hu: float) -> tuple[str, float]:
    scale, y = anatomy.habitus.scale, anatomy.spine_y_mm
    low = float(rng.uniform(-90, -30))
    length = float(rng.uniform(70, 110))
    for sign in (RIGHT, LEFT):
        rod = y + 40 * scale
        anatomy.canvas.paint_tubes(
            [(low, rod, sign * 17.0), (low + length, rod, sign * 17.0)], [4.4, 4.4], hu
        )
        for z in np.linspace(low + 5, low + length - 5, 4).tolist():
            anatomy.canvas.paint_tubes([(z, rod, sign * 17.0), (z, y, sign * 9.0)], [3.6, 3.0], hu)
    return "midline", length


def _paint_chest_tube(anatomy: Anatomy, rng: np.random.Generator, hu: float) -> tuple[str, float]:
    sign = int(rng.choice([RIGHT, LEFT]))
    z = float(rng.uniform(-50, 10))
    skin = (z - 35, -10.0, sign * (anatomy.body_x_mm - 4))
    pleura = (z, 25.0, sign * (anatomy.wall_x_mm - 14))
    tip = (z + 75, 30.0, sign * (anatomy.lung_center_x_mm + 5))
    anatomy.canvas.paint_tubes([skin, pleura, tip], [6.0, 6.0, 5.5], max(900.0, 0.6 * hu))
    return _SIDES[sign], 10.0


def _chest_wall(anatomy: Anatomy, x_mm: float, z_mm: float) -> Point:
    """Return a point in the fat in front of the ribs."""
    u = (abs(x_mm) - anatomy.lung_center_x_mm) / anatomy.habitus.lung_half_width_mm
    y = -anatomy.habitus.lung_half_depth_mm * float(np.sqrt(max(1 - u * u, 0.3)))
    return z_mm * anatomy.habitus.scale, y - 16, x_mm * anatomy.habitus.scale


# A painter gets the density of its metal and returns the side and the size in mm.
DEVICES: dict[str, Callable[[Anatomy, np.random.Generator, float], tuple[str, float]]] = {
    "pacemaker": _paint_pacemaker,
    "port catheter": _paint_port,
    "sternal wires": _paint_sternal_wires,
    "spinal rods": _paint_spinal_rods,
    "chest tube": _paint_chest_tube,
}
