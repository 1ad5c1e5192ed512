"""The normal thorax of a phantom: body, lungs, heart, vessels and bones, at plausible CT numbers.

Patient frame as in phantom_canvas: millimeters, (Z, Y, X), origin at the carina. What must not betray a
finding (habitus, contrast agent, density of lung and bone) varies here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radtower.demo.phantom_canvas import AIR_HU, Box, Canvas, Float, Point, smooth_field

CORTEX_HU = 230.0  # by how much cortical bone is denser than marrow, at this voxel size
RIGHT, LEFT = -1, 1  # X grows toward the left of the patient


@dataclass(frozen=True, kw_only=True)
class Habitus:
    """Build and tissue of a patient; lengths in mm, densities in HU."""

    scale: float
    fat_mm: float
    breast_mm: float
    muscle_mm: float
    lung_half_width_mm: float
    lung_half_depth_mm: float
    apex_mm: float
    diaphragm_mm: float
    heart_scale: float
    mediastinal_fat_mm: float
    lung_hu: float
    lung_gradient_hu: float
    vessel_scale: float
    bone_hu: float
    muscle_hu: float
    fat_hu: float
    blood_hu: float
    vein_hu: float
    liver_hu: float
    has_arms_down: bool


def draw_habitus(rng: np.random.Generator) -> Habitus:
    """Draw a patient; every range is that of a normal adult."""
    scale = rng.uniform(0.9, 1.12)
    blood_hu = rng.uniform(36, 52) if rng.random() < 0.5 else rng.uniform(90, 155)
    return Habitus(
        scale=scale,
        fat_mm=rng.uniform(5, 42),
        breast_mm=rng.uniform(12, 32) if rng.random() < 0.5 else 0.0,
        muscle_mm=rng.uniform(14, 26),
        lung_half_width_mm=69 * scale * rng.uniform(0.94, 1.06),
        lung_half_depth_mm=86 * scale * rng.uniform(0.9, 1.12),
        apex_mm=98 * scale * rng.uniform(0.9, 1.08),
        diaphragm_mm=-scale * rng.uniform(82, 132),
        heart_scale=scale * rng.uniform(0.9, 1.08),
        mediastinal_fat_mm=rng.uniform(6, 20),
        lung_hu=rng.uniform(-885, -785),
        lung_gradient_hu=rng.uniform(10, 80),
        vessel_scale=rng.uniform(0.8, 1.3),
        bone_hu=rng.uniform(120, 300),
        muscle_hu=rng.uniform(40, 62),
        fat_hu=rng.uniform(-115, -88),
        blood_hu=blood_hu,
        vein_hu=rng.uniform(150, 700) if blood_hu > 60 else blood_hu,
        liver_hu=rng.uniform(35, 75) + 0.3 * (blood_hu - 40),
        has_arms_down=bool(rng.random() < 0.25),
    )


class Anatomy:
    """Paints the normal thorax of one patient and remembers where things are.

    Args:
        canvas: Filled with air; painted in place by the methods, in the order in which they stand.
        habitus: The patient.
        heart_growth: 1 for a normal heart, more for cardiomegaly.
    """

    def __init__(self, canvas: Canvas, habitus: Habitus, heart_growth: float) -> None:
        self.canvas = canvas
        self.habitus = habitus
        scale = habitus.scale
        self.lung_center_x_mm = 0.92 * habitus.lung_half_width_mm
        self.wall_x_mm = self.lung_center_x_mm + habitus.lung_half_width_mm
        self.body_x_mm = self.wall_x_mm + habitus.muscle_mm + habitus.fat_mm
        self.body_y_mm = habitus.lung_half_depth_mm + habitus.muscle_mm + habitus.fat_mm
        self.spine_y_mm = 0.6 * habitus.lung_half_depth_mm
        self.heart_radii_mm: Point = tuple(  # type: ignore[assignment]
            float(radius * habitus.heart_scale * heart_growth) for radius in (59.0, 43.0, 40.0)
        )
        apex = np.array([-0.45, -0.5, 0.74])
        first = apex / np.linalg.norm(apex)
        second = np.cross(first, [0.0, 0.0, 1.0])
        second /= np.linalg.norm(second)
        self.heart_axes: NDArray[np.float64] = np.stack([first, second, np.cross(first, second)])
        reach = np.sqrt(((np.array(self.heart_radii_mm)[:, None] * self.heart_axes) ** 2).sum(axis=0))
        self.heart_center_mm: Point = (
            float(habitus.diaphragm_mm + 0.72 * reach[0]),
            float(-habitus.lung_half_depth_mm + 10 + reach[1]),
            float(14 * scale + 0.12 * reach[2]),
        )

    def paint_body(self, rng: np.random.Generator) -> None:
        """Paint skin, fat, muscle, and the fat that fills the chest between the organs."""
        habitus, canvas = self.habitus, self.canvas
        shoulders = 1 + 0.1 / (1 + np.exp(-(canvas.z_mm - 0.7 * habitus.apex_mm) / 14))
        shift = 0.5 * habitus.fat_mm - 4
        for thickness, hu in ((0.0, habitus.fat_hu), (habitus.fat_mm, habitus.muscle_hu)):
            half_x = (self.body_x_mm - thickness) * shoulders
            half_y = (self.body_y_mm - thickness) * (1.06 - 0.6 * (shoulders - 1))
            box = _all(canvas)
            center = 8.0 - (shift if thickness == 0 else 0)
            canvas.paint(box, self._column(box, (center, 0.0), half_y, half_x), hu)
        self._paint_outside_muscle(rng)
        box = _all(canvas)
        inner = np.full_like(canvas.z_mm, self.wall_x_mm - 4)
        depth = np.full_like(canvas.z_mm, habitus.lung_half_depth_mm - 2)
        narrowing = np.sqrt(np.clip(1 - (np.clip(canvas.z_mm, 0, None) / habitus.apex_mm) ** 2, 0.04, 1))
        inner, depth = inner * narrowing, depth * narrowing
        canvas.paint(box, self._column(box, (0.0, 0.0), depth, inner, 0.3), habitus.fat_hu)

    def _paint_outside_muscle(self, rng: np.random.Generator) -> None:
        """Breasts and arms."""
        habitus, canvas = self.habitus, self.canvas
        for side in (RIGHT, LEFT):
            if habitus.breast_mm:
                center = (-55 * habitus.scale, 8 - self.body_y_mm, side * 0.5 * self.body_x_mm)
                radii = (55.0, habitus.breast_mm + 10, 50.0)
                canvas.paint_ellipsoid(center, radii, habitus.fat_hu + 15)
                inner = (30.0, 0.5 * habitus.breast_mm, 25.0)
                canvas.paint_ellipsoid(center, inner, rng.uniform(-60, 30))
            if habitus.has_arms_down:
                x = side * (self.body_x_mm + 42)
                arm = [(200.0, 10.0, x), (-250.0, 0.0, x * 1.04)]
                for radius, hu in ((38, habitus.fat_hu), (31, habitus.muscle_hu), (11, 450.0)):
                    canvas.paint_tubes(arm, [radius, radius], hu)

    def _column(
        self, box: Box, center: tuple[float, float], half_y: Float, half_x: Float, square: float = 0.35
    ) -> Float:
        """Weight of a column with a rounded-square section; half widths (Z,), center in (Y, X)."""
        v = (box.y_mm - center[0]) ** 2 * (1 / half_y**2)[box.voxels[0], None, None]
        u = (box.x_mm - center[1]) ** 2 * (1 / half_x**2)[box.voxels[0], None, None]
        q = np.sqrt(np.maximum(u + v - square * u * v, 0))
        # Far corners of the rounded square fold back inside; cut them off.
        q = np.where((u < 1.2) & (v < 1.2), q, 2)
        return self.canvas.step(((1 - q) * half_y[box.voxels[0], None, None]).astype(np.float32))

    def diaphragm_z_mm(self, box: Box, side: int) -> Float:
        """Height of the diaphragm ``(1, Y, X)`` on one side: a dome, deepest at the back."""
        habitus = self.habitus
        u = (box.x_mm - side * self.lung_center_x_mm) / habitus.lung_half_width_mm
        v = box.y_mm / habitus.lung_half_depth_mm
        top = habitus.diaphragm_mm + (8 * habitus.scale if side == RIGHT else -4 * habitus.scale)
        height: Float = top - habitus.scale * (16 * u**2 + 22 * v**2 + 24 * np.maximum(v, 0) ** 2)
        return height

    def lung_box(self, side: int) -> Box:
        """Return the block of voxels around one lung."""
        habitus = self.habitus
        x = side * self.lung_center_x_mm
        low = (
            habitus.diaphragm_mm - 75 * habitus.scale,
            -habitus.lung_half_depth_mm,
            x - habitus.lung_half_width_mm,
        )
        high = (habitus.apex_mm, habitus.lung_half_depth_mm, x + habitus.lung_half_width_mm)
        return self.canvas.box(low, high)

    def paint_lungs_and_ribs(self, rng: np.random.Generator) -> None:
        """Paint the abdomen, both lungs with their texture, and the ribs around them."""
        canvas, habitus = self.canvas, self.habitus
        self._paint_abdomen(rng)
        cells = tuple(
            max(2, round(n * s / 18)) for n, s in zip(canvas.lung.shape, canvas.spacing_mm, strict=True)
        )
        texture = smooth_field(rng, canvas.lung.shape, (cells[0], cells[1], cells[2]))
        pitch, phase = 25 * habitus.scale * rng.uniform(0.92, 1.08), rng.uniform(0, 6.28)
        for side in (RIGHT, LEFT):
            box = self.lung_box(side)
            outside = (self._lung_radius(box, side) - 1) * np.float32(habitus.lung_half_width_mm)
            # The lungs almost meet in front of the heart; at the back the spine keeps them apart.
            ramp = np.clip((box.y_mm + 30) / 50, 0, 1)
            medial = habitus.mediastinal_fat_mm + (27 * habitus.scale - habitus.mediastinal_fat_mm) * ramp
            weight = canvas.step(-outside) * canvas.step(side * box.x_mm - medial)
            weight *= canvas.step(box.z_mm - self.diaphragm_z_mm(box, side))
            dependent = (box.y_mm / habitus.lung_half_depth_mm) * habitus.lung_gradient_hu
            canvas.paint(box, weight, habitus.lung_hu + dependent + 14 * texture[box.voxels])
            canvas.lung[box.voxels] = weight
            self._paint_ribs(side, pitch, phase)

    def _lung_radius(self, box: Box, side: int) -> Float:
        """Distance from the axis of one lung, 1 at its surface, which narrows to a dome at the apex."""
        habitus = self.habitus
        rise = np.clip(box.z_mm / habitus.apex_mm, 0, 1.3)
        center = side * self.lung_center_x_mm * (1 - 0.2 * rise)
        u = ((box.x_mm - center) / habitus.lung_half_width_mm) ** 2
        v = (box.y_mm / habitus.lung_half_depth_mm) ** 2
        section = np.where((u < 1.6) & (v < 1.6), u + v - 0.35 * u * v, 4)
        radius: Float = np.sqrt(section + rise * rise)
        return radius

    def _paint_ribs(self, side: int, pitch_mm: float, phase: float) -> None:
        """Paint oblique rings in the chest wall, just outside the lung."""
        canvas, habitus = self.canvas, self.habitus
        x = side * self.lung_center_x_mm
        half = (habitus.lung_half_depth_mm + 12, habitus.lung_half_width_mm + 12)
        box = canvas.box(
            (habitus.diaphragm_mm - 60, -half[0], x - half[1]), (habitus.apex_mm + 12, half[0], x + half[1])
        )
        outside = (self._lung_radius(box, side) - 1) * np.float32(habitus.lung_half_width_mm)
        angle_z = (box.z_mm * (6.2832 / pitch_mm) + phase).astype(np.float32)
        angle_y = box.y_mm * np.float32(0.42 * 6.2832 / pitch_mm)  # ribs descend toward the front
        wave = np.cos(angle_z) * np.cos(angle_y) + np.sin(angle_z) * np.sin(-angle_y)
        weight = np.clip((wave - 0.45) * 4, 0, 1) * canvas.step(4 - np.abs(outside - 6))
        weight *= canvas.step(np.abs(box.x_mm) - 24)
        canvas.paint(box, weight, habitus.bone_hu + CORTEX_HU)

    def _paint_abdomen(self, rng: np.random.Generator) -> None:
        """Paint liver, spleen and stomach; the lungs are painted over their tops."""
        habitus, canvas = self.habitus, self.canvas
        top, half = habitus.diaphragm_mm, habitus.lung_half_width_mm
        canvas.paint_ellipsoid(
            (top - 70, 5, -0.85 * half), (85, 85 * habitus.scale, 1.05 * half), habitus.liver_hu
        )
        canvas.paint_ellipsoid((top - 45, -25, 0.1 * half), (40, 45, 0.9 * half), habitus.liver_hu)
        spleen = (top - 65, 45 * habitus.scale, 1.25 * half)
        canvas.paint_ellipsoid(spleen, (50, 35, 0.55 * half), habitus.liver_hu - 5)
        stomach: Point = (top - 45, -10, 0.95 * half)
        size = rng.uniform(0.7, 1.2)
        canvas.paint_ellipsoid(stomach, (38 * size, 36 * size, 40 * size), rng.uniform(5, 40))
        gas = (stomach[0] + 4, stomach[1] - 16 * size, stomach[2])
        canvas.paint_ellipsoid(gas, (28 * size, 16 * size * rng.uniform(0.3, 1), 30 * size), -950)

    def paint_lung_vessels(self, rng: np.random.Generator) -> None:
        """Paint a small tree of vessels into each lung, at the density of blood."""
        habitus = self.habitus
        for side in (RIGHT, LEFT):
            hilum = np.array([-14.0, 8.0, side * 36.0]) * habitus.scale
            middle_z = 0.5 * (habitus.apex_mm + habitus.diaphragm_mm)
            center = np.array([middle_z, 0.0, side * (self.lung_center_x_mm + 10)])
            reach = np.array(
                [0.62 * (habitus.apex_mm - habitus.diaphragm_mm), 0.85 * habitus.lung_half_depth_mm, 45.0]
            )
            for _ in range(7):
                direction = rng.standard_normal(3)
                direction[2] = side * abs(direction[2])
                end = center + reach * direction / np.linalg.norm(direction)
                fork = hilum + rng.uniform(0.35, 0.5) * (end - hilum)
                self._paint_vessel(hilum, fork, 4.2, 2.2)
                for _ in range(3):
                    twig = end + rng.normal(0, 20, 3)
                    self._paint_vessel(fork, twig, 1.9, 0.7)

    def _paint_vessel(
        self, start: NDArray[np.float64], end: NDArray[np.float64], first: float, last: float
    ) -> None:
        canvas, thickness = self.canvas, self.habitus.vessel_scale
        box, weight = canvas.tube(_point(start), _point(end), (first * thickness, last * thickness))
        canvas.paint(box, weight * canvas.lung[box.voxels], self.habitus.blood_hu, hides_lung=False)

    def paint_heart(self) -> None:
        """Paint the epicardial fat, the muscle, the two filled chambers and the coronary arteries."""
        canvas, habitus = self.canvas, self.habitus
        radii = np.array(self.heart_radii_mm)
        for growth, hu in ((4.5, habitus.fat_hu), (0.0, 45.0)):
            canvas.paint(*canvas.ellipsoid(self.heart_center_mm, _point(radii + growth), self.heart_axes), hu)
        across = self.heart_axes[1] * np.sign(self.heart_axes[1][2]) * radii[1]
        for shift, size in ((0.42, 0.46), (-0.42, 0.4)):
            center = np.array(self.heart_center_mm) + shift * across
            canvas.paint(
                *canvas.ellipsoid(_point(center), _point(size * radii), self.heart_axes), habitus.blood_hu
            )
        for name in CORONARY_COURSES:
            canvas.paint_tubes(self.coronary_points_mm(name), [2.0] * 6, habitus.blood_hu)

    def coronary_points_mm(self, name: str) -> list[Point]:
        """Return six points along a coronary artery, from its origin, on the surface of the heart."""
        start, end = (np.array(direction) for direction in CORONARY_COURSES[name])
        points = []
        for share in np.linspace(0, 1, 6):
            local = self.heart_axes @ ((1 - share) * start + share * end)
            length = np.sqrt(((local / self.heart_radii_mm) ** 2).sum())
            surface = self.heart_axes.T @ (local / length) * 1.03
            points.append(_point(surface + self.heart_center_mm))
        return points

    def paint_great_vessels_and_airways(self) -> None:
        """Paint aorta, pulmonary arteries, veins, esophagus, trachea and main bronchi."""
        canvas, habitus, s = self.canvas, self.habitus, self.habitus.scale
        back, blood = self.spine_y_mm - 16 * s, habitus.blood_hu
        root = (self.heart_center_mm[0] + 25 * s, self.heart_center_mm[1] + 2, 2.0)
        arch = [root, (5 * s, -30 * s, -14 * s), (26 * s, -12 * s, 0.0), (22 * s, 12 * s, 16 * s)]
        arch += [(2 * s, back, 24 * s), (-230 * s, back + 6, 14 * s)]
        canvas.paint_tubes(arch, [15 * s, 15 * s, 13 * s, 12 * s, 12 * s, 10 * s], blood)
        trunk = [(root[0] + 6, root[1] - 12, 16 * s), (-14 * s, -12 * s, 20 * s)]
        canvas.paint_tubes([*trunk, (-10 * s, 8 * s, 40 * s)], [13 * s, 12 * s, 9 * s], blood)
        canvas.paint_tubes(
            [trunk[1], (-16 * s, -6 * s, -12 * s), (-14 * s, 6 * s, -38 * s)], [11 * s, 10 * s, 9 * s], blood
        )
        veins: list[Point] = [
            (-55 * s, -15 * s, -28 * s),
            (45 * s, -16 * s, -26 * s),
            (90 * s, -20 * s, -48 * s),
        ]
        canvas.paint_tubes(veins, [9 * s, 8 * s, 6 * s], habitus.vein_hu)
        for x in (-18, 4, 20):
            canvas.paint_tubes(
                [(22 * s, -8 * s, x * s * 0.6), (110 * s, -2 * s, x * 1.6 * s)], [6 * s, 5 * s], blood
            )
        canvas.paint_tubes([(120 * s, 24 * s, 3.0), (-200 * s, back - 16, 10 * s)], [7 * s, 7 * s], 38)
        airways: list[list[Point]] = [
            [(125 * s, 8 * s, 0.0), (0.0, 8 * s, 0.0)],
            [(0.0, 8 * s, 0.0), (-24 * s, 12 * s, -30 * s)],
            [(0.0, 8 * s, 0.0), (-22 * s, 14 * s, 36 * s)],
        ]
        for widening, hu in ((2.5, habitus.muscle_hu - 5), (0.0, AIR_HU)):
            for points, radius in zip(airways, (8.5, 6.5, 6.0), strict=True):
                canvas.paint_tubes(points, [radius * s + widening, radius * s + widening], hu)

    def paint_bones(self) -> None:
        """Paint spine, sternum, clavicles and shoulder blades; the ribs come with the lungs."""
        canvas, habitus, s = self.canvas, self.habitus, self.habitus.scale
        cortex = habitus.bone_hu + CORTEX_HU
        self._paint_spine(cortex)
        front = -habitus.lung_half_depth_mm - 4
        canvas.paint_ellipsoid((8 * s, front, 0.0), (80 * s, 7.0, 19 * s), cortex - 80)
        canvas.paint_ellipsoid((8 * s, front, 0.0), (76 * s, 4.0, 14 * s), habitus.bone_hu)
        for side in (RIGHT, LEFT):
            top = 0.93 * habitus.apex_mm
            clavicle: list[Point] = [
                (top - 22 * s, front + 14, side * 22 * s),
                (top + 12, front + 42, side * 150 * s),
            ]
            canvas.paint_tubes(clavicle, [8.0, 6.5], cortex)
            blade: Point = (0.45 * habitus.apex_mm, habitus.lung_half_depth_mm * 0.93 + 12, side * 104 * s)
            tilt = np.array([[1.0, 0.0, 0.0], [0.0, 0.85, side * 0.53], [0.0, -side * 0.53, 0.85]])
            canvas.paint(*canvas.ellipsoid(blade, (58 * s, 5.0, 34 * s), tilt), cortex)

    def _paint_spine(self, cortex_hu: float) -> None:
        canvas, habitus, s = self.canvas, self.habitus, self.habitus.scale
        y = self.spine_y_mm
        box = canvas.box((-400, y - 20 * s, -45 * s), (400, y + 70 * s, 45 * s))
        across = np.sqrt(((box.y_mm - y) / (15 * s)) ** 2 + (box.x_mm / (18 * s)) ** 2)
        disc = np.clip((np.cos(box.z_mm * (6.2832 / (24 * s))) - 0.75) * 5, 0, 1)
        body = canvas.step((1 - across) * np.float32(15 * s))
        marrow = canvas.step((0.82 - across) * np.float32(15 * s))
        hu = cortex_hu + marrow * (habitus.bone_hu - cortex_hu)
        canvas.paint(box, body, hu + disc * (70 - hu))
        ring = np.sqrt((box.y_mm - y - 25 * s) ** 2 + box.x_mm**2)
        canvas.paint(box, canvas.step(15 * s - ring) * (1 - 0.5 * disc), cortex_hu - 100)
        canvas.paint(box, canvas.step(9 * s - ring) + np.zeros_like(disc), 30)
        process = np.minimum(4.5 - np.abs(box.x_mm), 15 * s - np.abs(box.y_mm - y - 50 * s))
        wings = np.minimum(5 - np.abs(box.y_mm - y - 24 * s), 36 * s - np.abs(box.x_mm))
        wings = np.minimum(wings, np.abs(box.x_mm) - 12 * s)
        canvas.paint(box, canvas.step(np.maximum(process, wings)) * (1 - disc), cortex_hu - 100)


CORONARY_COURSES: dict[str, tuple[Point, Point]] = {
    "left anterior descending": ((0.75, -0.6, 0.3), (-0.35, -0.75, 0.6)),
    "circumflex": ((0.75, 0.2, 0.6), (-0.2, 0.55, 0.8)),
    "right coronary": ((0.75, -0.6, -0.35), (-0.45, -0.35, -0.8)),
}  # directions from the center of the heart, (Z, Y, X)


def _all(canvas: Canvas) -> Box:
    whole = slice(None)
    return Box((whole, whole, whole), canvas.z_mm[:, None, None], canvas.y_mm[None], canvas.x_mm[None])


def _point(values: NDArray[np.float64]) -> Point:
    return float(values[0]), float(values[1]), float(values[2])
