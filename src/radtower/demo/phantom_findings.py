"""The findings of a phantom: each paints itself into a thorax and says what it painted.

Order: the heart is enlarged before it is painted (cardiomegaly); everything else is painted on the finished
anatomy. Lesions of the lung are placed only where ``canvas.lung`` is still lung, so no lesion covers another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radtower.demo.phantom_anatomy import CORONARY_COURSES, LEFT, RIGHT, Anatomy
from radtower.demo.phantom_canvas import Box, Canvas, Float, Point, smooth_field
from radtower.demo.phantom_devices import DEVICES

# A part of the CT-RATE findings, in the order of its label files.
PHANTOM_FINDINGS: tuple[str, ...] = (
    "medical_material",
    "cardiomegaly",
    "pericardial_effusion",
    "coronary_artery_wall_calcification",
    "hiatal_hernia",
    "lymphadenopathy",
    "emphysema",
    "lung_nodule",
    "lung_opacity",
    "pleural_effusion",
    "consolidation",
)


@dataclass(frozen=True, kw_only=True)
class PlacedFinding:
    """One finding as it was painted.

    Attributes:
        name: Entry of ``PHANTOM_FINDINGS``.
        side: ``left``, ``right``, ``bilateral`` or ``midline``.
        region: Where, in words of a report: a lobe, a lymph node station, an artery; may be empty.
        size_mm: Largest diameter, thickness or length, whichever a report would give; rounded.
        severity: ``mild``, ``moderate`` or ``severe``.
        count: Number of lesions.
        kind: Which device, for medical material; else empty.
    """

    name: str
    side: str
    size_mm: int
    severity: str
    region: str = ""
    count: int = 1
    kind: str = ""


Painter = Callable[[Anatomy, np.random.Generator], PlacedFinding]
_SEVERITIES = ("mild", "moderate", "severe")
_STATIONS: dict[str, Point] = {
    "right paratracheal": (28.0, 4.0, -20.0),
    "left paratracheal": (30.0, 10.0, 20.0),
    "aortopulmonary": (4.0, -4.0, 36.0),
    "subcarinal": (-22.0, 20.0, 2.0),
    "prevascular": (22.0, -38.0, 4.0),
    "right hilar": (-12.0, 8.0, -46.0),
    "left hilar": (-14.0, 14.0, 48.0),
}


def draw_heart_growth(rng: np.random.Generator) -> float:
    """Draw by how much cardiomegaly enlarges each radius of the heart."""
    return float(rng.uniform(1.26, 1.46))


def describe_cardiomegaly(anatomy: Anatomy, heart_growth: float) -> PlacedFinding:
    """Return the finding that belongs to a heart that ``anatomy`` painted enlarged."""
    radii, axes = np.array(anatomy.heart_radii_mm), anatomy.heart_axes
    width = 2 * float(np.sqrt(((radii * axes[:, 2]) ** 2).sum()))
    severity = _grade(heart_growth, 1.33, 1.4)
    return PlacedFinding(name="cardiomegaly", side="midline", size_mm=round(width), severity=severity)


def paint_finding(name: str, anatomy: Anatomy, rng: np.random.Generator) -> PlacedFinding:
    """Paint one finding other than cardiomegaly; positions and sizes come from ``rng``."""
    return _PAINTERS[name](anatomy, rng)


def _paint_pericardial_effusion(anatomy: Anatomy, rng: np.random.Generator) -> PlacedFinding:
    canvas, thickness = anatomy.canvas, float(rng.uniform(11, 24))
    radii = np.array(anatomy.heart_radii_mm) + 4.5
    grown = radii + thickness
    box, outer = canvas.ellipsoid(anatomy.heart_center_mm, _triple(grown), anatomy.heart_axes)
    delta = [axis - center for axis, center in zip(box[1:], anatomy.heart_center_mm, strict=True)]
    squared = np.zeros((1, 1, 1), np.float32)
    for axis, radius in zip(anatomy.heart_axes.tolist(), radii.tolist(), strict=True):
        squared = squared + (delta[0] * axis[0] + delta[1] * axis[1] + delta[2] * axis[2]) ** 2 / radius**2
    inner = canvas.step((1 - np.sqrt(squared)) * np.float32(radii.min()))
    # Fluid fills fat and lung; it does not wash away vessels, bones or the liver.
    yields = np.clip(-canvas.volume_hu[box.voxels] / 40, 0, 1)
    canvas.paint(box, outer * (1 - inner) * yields, float(rng.uniform(4, 22)))
    return PlacedFinding(
        name="pericardial_effusion",
        side="midline",
        size_mm=round(thickness),
        severity=_grade(thickness, 14, 19),
    )


def _paint_hiatal_hernia(anatomy: Anatomy, rng: np.random.Generator) -> PlacedFinding:
    canvas, scale = anatomy.canvas, anatomy.habitus.scale
    radius = float(rng.uniform(21, 38))
    x = float(rng.uniform(-4, 16)) * scale
    y = min(anatomy.spine_y_mm - 17 * scale - 0.55 * radius, 0.45 * anatomy.habitus.lung_half_depth_mm)
    center = (anatomy.habitus.diaphragm_mm + float(rng.uniform(0.35, 0.8)) * radius, y, x)
    radii = (1.05 * radius, 0.85 * radius, radius)
    canvas.paint_ellipsoid(center, radii, 45.0)
    inside = tuple(r - 4 for r in radii)
    box, weight = canvas.ellipsoid(center, _triple(inside))
    fluid_level = center[1] + float(rng.uniform(-0.1, 0.5)) * radius  # the patient lies on the back
    canvas.paint(box, weight, float(rng.uniform(0, 35)))
    canvas.paint(box, weight * canvas.step(fluid_level - box.y_mm), float(rng.uniform(-980, -850)))
    return PlacedFinding(
        name="hiatal_hernia", side="midline", size_mm=round(2 * radius), severity=_grade(radius, 26, 32)
    )


def _paint_pleural_effusion(anatomy: Anatomy, rng: np.random.Generator) -> PlacedFinding:
    canvas, habitus = anatomy.canvas, anatomy.habitus
    side = str(rng.choice(["right", "left", "bilateral"], p=[0.35, 0.3, 0.35]))
    depth = float(rng.uniform(24, 62))
    hu = float(rng.uniform(0, 24))
    for sign in _signs(side):
        box = anatomy.lung_box(sign)
        own = depth if sign == RIGHT or side != "bilateral" else depth * float(rng.uniform(0.6, 1.0))
        base = habitus.diaphragm_mm - 45 * habitus.scale
        height = (1.6 + own / 40) * 60
        layer = own * np.clip(1 - (box.z_mm - base) / height, 0, 1.2)
        level = habitus.lung_half_depth_mm - layer  # fluid collects at the back
        level = level - 6 * np.abs(box.x_mm - sign * anatomy.lung_center_x_mm) / habitus.lung_half_width_mm
        canvas.paint(box, canvas.step(box.y_mm - level) * canvas.lung[box.voxels], hu)
    return PlacedFinding(
        name="pleural_effusion", side=side, size_mm=round(depth), severity=_grade(depth, 34, 48)
    )


def _paint_emphysema(anatomy: Anatomy, rng: np.random.Generator) -> PlacedFinding:
    canvas, habitus = anatomy.canvas, anatomy.habitus
    amount = float(rng.uniform(0, 1))
    middle = habitus.diaphragm_mm + 0.5 * (habitus.apex_mm - habitus.diaphragm_mm)
    for sign in (RIGHT, LEFT):
        box = anatomy.lung_box(sign)
        shape = canvas.lung[box.voxels].shape
        cells = tuple(max(2, round(n * s / 13)) for n, s in zip(shape, canvas.spacing_mm, strict=True))
        holes = smooth_field(rng, shape, (cells[0], cells[1], cells[2]))
        upper = np.clip((box.z_mm - middle) / 60 + 1.1, 0, 1.4)  # centrilobular: upper lobes first
        weight = np.clip((holes + 0.9 * upper - 0.85 + 0.5 * amount) * 2.5, 0, 1) * upper.clip(0, 1)
        canvas.paint(box, weight * canvas.lung[box.voxels], -985.0, hides_lung=False)
    severity = _SEVERITIES[min(int(amount * 3), 2)]
    size = round(float(rng.uniform(10, 18)) + 12 * amount)
    return PlacedFinding(
        name="emphysema", side="bilateral", region="upper lobe", size_mm=size, severity=severity
    )


def _paint_lung_opacity(anatomy: Anatomy, rng: np.random.Generator) -> PlacedFinding:
    canvas = anatomy.canvas
    count = int(rng.integers(2, 5))
    hu = float(rng.uniform(-600, -430))
    centers, sizes = [], []
    for _ in range(count):
        radius = float(rng.uniform(20, 34))
        center = _pick_in_lung(canvas, rng, 0.5 * radius)
        box, weight = _ragged_ball(canvas, rng, center, radius)
        weight = weight * canvas.lung[box.voxels] * np.float32(0.9)
        # Ground glass: vessels stay visible through it.
        canvas.paint(box, weight, np.maximum(canvas.volume_hu[box.voxels], hu))
        centers.append(center)
        sizes.append(2 * radius)
    size = max(sizes)
    side, region = _side(centers), _lobe(anatomy, centers[int(np.argmax(sizes))])
    severity = _SEVERITIES[count - 2]
    return PlacedFinding(
        name="lung_opacity", side=side, region=region, size_mm=round(size), severity=severity, count=count
    )


def _paint_consolidation(anatomy: Anatomy, rng: np.random.Generator) -> PlacedFinding:
    canvas = anatomy.canvas
    count = int(rng.integers(1, 3))
    centers, sizes = [], []
    for _ in range(count):
        radius = float(rng.uniform(32, 48))
        center = _pick_in_lung(canvas, rng, 0.4 * radius, below_z_mm=30.0)
        box, weight = _ragged_ball(canvas, rng, center, radius)
        lesion = np.zeros_like(canvas.lung)
        lesion[box.voxels] = weight * canvas.lung[box.voxels]
        canvas.paint(box, lesion[box.voxels], float(rng.uniform(25, 60)))
        _paint_bronchograms(canvas, rng, lesion, center, radius)
        centers.append(center)
        sizes.append(2 * radius)
    largest = int(np.argmax(sizes))
    return PlacedFinding(
        name="consolidation",
        side=_side(centers),
        region=_lobe(anatomy, centers[largest]),
        size_mm=round(sizes[largest]),
        severity=_grade(sizes[largest], 74, 86),
        count=count,
    )


def _paint_bronchograms(
    canvas: Canvas, rng: np.random.Generator, lesion: Float, center: Point, radius: float
) -> None:
    """Paint air-filled airways inside a lesion, pointing away from the hilum."""
    middle = np.array(center)
    hilum = np.array([-10.0, 8.0, 30.0 * np.sign(center[2])])
    for _ in range(6):
        direction = middle - hilum + rng.normal(0, 22, 3)
        direction *= 0.75 * radius / np.linalg.norm(direction)
        shift = rng.normal(0, 0.25 * radius, 3)
        box, inside = canvas.tube(
            _triple(middle + shift - direction), _triple(middle + shift + direction), (3.6, 2.0)
        )
        canvas.paint(box, inside * lesion[box.voxels], -850.0)


def _paint_lung_nodule(anatomy: Anatomy, rng: np.random.Generator) -> PlacedFinding:
    canvas = anatomy.canvas
    count = int(rng.integers(1, 7))
    sizes = np.sort(rng.uniform(17, 32, count))[::-1]
    centers = []
    for size in sizes.tolist():
        center = _pick_in_lung(canvas, rng, 0.5 * size + 3)
        radii = 0.5 * size * rng.uniform(0.88, 1.12, 3)
        canvas.paint_ellipsoid(center, _triple(radii), float(rng.uniform(20, 90)))
        centers.append(center)
    return PlacedFinding(
        name="lung_nodule",
        side=_side(centers),
        region=_lobe(anatomy, centers[0]),
        size_mm=round(float(sizes[0])),
        severity=_grade(float(sizes[0]), 22, 28),
        count=count,
    )


def _paint_lymphadenopathy(anatomy: Anatomy, rng: np.random.Generator) -> PlacedFinding:
    canvas, scale = anatomy.canvas, anatomy.habitus.scale
    names = rng.permutation(sorted(_STATIONS))[: int(rng.integers(4, 8))].tolist()
    density, sizes = float(rng.uniform(40, 85)), []
    for name in names:
        size = float(rng.uniform(23, 38))
        for part in range(3):  # nodes lie in clusters
            center = np.array(_STATIONS[name]) * scale + part * rng.normal(0, 10, 3)
            radii = 0.5 * size * rng.uniform(0.85, 1.2, 3) * (1 - 0.2 * part)
            canvas.paint_ellipsoid(_triple(center), _triple(radii), density)
        sizes.append(size)
    largest = int(np.argmax(sizes))
    return PlacedFinding(
        name="lymphadenopathy",
        side="midline",
        region=names[largest],
        size_mm=round(sizes[largest]),
        severity=_grade(sizes[largest], 31, 35),
        count=len(names),
    )


def _paint_coronary_calcification(anatomy: Anatomy, rng: np.random.Generator) -> PlacedFinding:
    names = sorted(CORONARY_COURSES)
    arteries = rng.permutation(names)[: int(rng.integers(2, 4))].tolist()
    total = 0.0
    for artery in arteries:
        points = np.array(anatomy.coronary_points_mm(artery))
        for start in rng.permutation(5)[: int(rng.integers(3, 6))].tolist():
            radius = float(rng.uniform(3.4, 5.0))
            ends = [_triple(points[start]), _triple(points[start + 1])]
            anatomy.canvas.paint_tubes(ends, [radius, radius], float(rng.uniform(800, 1500)))
            total += float(np.linalg.norm(points[start + 1] - points[start]))
    return PlacedFinding(
        name="coronary_artery_wall_calcification",
        side="midline",
        region=arteries[0],
        size_mm=round(total),
        severity=_grade(total, 150, 230),
        count=len(arteries),
    )


def _paint_medical_material(anatomy: Anatomy, rng: np.random.Generator) -> PlacedFinding:
    kind = str(rng.choice(sorted(DEVICES)))
    side, size = DEVICES[kind](anatomy, rng, float(rng.uniform(1400, 3071)))
    return PlacedFinding(
        name="medical_material", side=side, size_mm=round(size), severity="moderate", kind=kind
    )


def _ragged_ball(
    canvas: Canvas, rng: np.random.Generator, center_mm: Point, radius_mm: float
) -> tuple[Box, Float]:
    """Weight of a ball with an irregular, fading border."""
    box, _ = canvas.ellipsoid(center_mm, (1.3 * radius_mm,) * 3)
    shape = canvas.lung[box.voxels].shape
    ripple = smooth_field(rng, shape, (4, 4, 4))
    delta = [axis - value for axis, value in zip(box[1:], center_mm, strict=True)]
    distance = np.sqrt(delta[0] ** 2 + (delta[1] ** 2 + delta[2] ** 2))
    weight: Float = np.clip((radius_mm - distance + 0.16 * radius_mm * ripple) / 6 + 0.5, 0, 1)
    return box, weight.astype(np.float32)


def _pick_in_lung(
    canvas: Canvas, rng: np.random.Generator, margin_mm: float, below_z_mm: float = 1000.0
) -> Point:
    """Draw a point with free lung around it, as far as ``margin_mm`` where the lung is large enough."""
    coarse = canvas.lung[::2, ::3, ::3] > 0.9
    coarse &= (canvas.z_mm[::2] < below_z_mm)[:, None, None]
    candidates = np.argwhere(coarse) * (2, 3, 3)
    if not len(candidates):
        raise ValueError(
            f"canvas must have free lung below {below_z_mm} mm, got none in shape {canvas.lung.shape}. "
            "Paint the lungs first, or fewer lesions."
        )
    candidates = candidates[rng.permutation(len(candidates))[:60]]
    steps = np.array([np.eye(3)[axis] * sign for axis in range(3) for sign in (-1, 1)])
    limit = np.array(canvas.lung.shape) - 1
    best, best_share = candidates[0], -1.0
    for candidate in candidates:
        reach = np.rint(steps * margin_mm / np.array(canvas.spacing_mm)).astype(int)
        around = np.clip(candidate + reach, 0, limit)
        share = float(canvas.lung[around[:, 0], around[:, 1], around[:, 2]].min())
        if share > best_share:
            best, best_share = candidate, share
        if share > 0.9:
            break
    z, y, x = (int(i) for i in best)
    return float(canvas.z_mm[z]), float(canvas.y_mm[y, x]), float(canvas.x_mm[y, x])


def _grade(value: float, moderate: float, severe: float) -> str:
    return _SEVERITIES[int(value > moderate) + int(value > severe)]


def _signs(side: str) -> tuple[int, ...]:
    return {"right": (RIGHT,), "left": (LEFT,), "bilateral": (RIGHT, LEFT)}[side]


def _side(centers_mm: list[Point]) -> str:
    """Side on which the points lie."""
    sides = {center[2] > 0 for center in centers_mm}
    return "bilateral" if len(sides) == 2 else ("left" if sides == {True} else "right")


def _lobe(anatomy: Anatomy, center_mm: Point) -> str:
    """Name the lobe by height; the phantom has no fissures."""
    habitus = anatomy.habitus
    height = (center_mm[0] - habitus.diaphragm_mm) / (habitus.apex_mm - habitus.diaphragm_mm)
    if height > 0.55:
        return "upper lobe"
    if center_mm[2] < 0 and center_mm[1] < 0:
        return "middle lobe"
    return "lower lobe" if center_mm[1] > 0 else "lingula"


def _triple(values: Sequence[float] | NDArray[np.float64]) -> Point:
    return float(values[0]), float(values[1]), float(values[2])


_PAINTERS: dict[str, Painter] = {
    "medical_material": _paint_medical_material,
    "pericardial_effusion": _paint_pericardial_effusion,
    "coronary_artery_wall_calcification": _paint_coronary_calcification,
    "hiatal_hernia": _paint_hiatal_hernia,
    "lymphadenopathy": _paint_lymphadenopathy,
    "emphysema": _paint_emphysema,
    "lung_nodule": _paint_lung_nodule,
    "lung_opacity": _paint_lung_opacity,
    "pleural_effusion": _paint_pleural_effusion,
    "consolidation": _paint_consolidation,
}
# Broad lesions first, so that small ones find free lung and are not painted over.
PAINT_ORDER: tuple[str, ...] = (
    "pericardial_effusion",
    "coronary_artery_wall_calcification",
    "hiatal_hernia",
    "lymphadenopathy",
    "pleural_effusion",
    "emphysema",
    "consolidation",
    "lung_opacity",
    "lung_nodule",
    "medical_material",
)
