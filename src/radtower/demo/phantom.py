"""Synthetic CT of the thorax with findings that can be switched on one by one; no patient data.

Made to exercise the package, not to resemble disease: every number obtained on it is a phantom result.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radtower.demo.phantom_anatomy import Anatomy, Habitus, draw_habitus
from radtower.demo.phantom_canvas import AIR_HU, Canvas, Float, Point
from radtower.demo.phantom_findings import (
    PAINT_ORDER,
    PHANTOM_FINDINGS,
    PlacedFinding,
    describe_cardiomegaly,
    draw_heart_growth,
    paint_finding,
)

HU_RANGE = (-1024, 3071)  # what a 12-bit scanner stores
LESION_HU = 40.0  # a voxel that a finding changes by more belongs to its lesion; about the largest noise
# One random stream per part, so that switching a finding on leaves the rest of the volume as it was.
_HABITUS, _SCANNER, _ANATOMY, _OUTSIDE, _NOISE, _FIRST_FINDING = range(6)


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One synthetic study.

    Attributes:
        volume_hu: ``(Z, Y, X)`` int16, Hounsfield units; Z toward the head, Y toward the back, X toward the
            left of the patient.
        spacing_mm: Voxel size in (Z, Y, X) order.
        placed: What was painted, in the order of ``PHANTOM_FINDINGS``; a finding is here or absent.
        seed: The seed that gives this volume again.
        habitus: Build and tissue of the patient.
        lesions: ``(Z, Y, X)`` bool by finding: the voxels that its painting changed visibly; the whole heart
            where that is enlarged.
    """

    volume_hu: NDArray[np.int16]
    spacing_mm: Point
    placed: tuple[PlacedFinding, ...]
    seed: int
    habitus: Habitus
    lesions: dict[str, NDArray[np.bool_]] = field(repr=False, compare=False)

    @property
    def findings(self) -> dict[str, PlacedFinding]:
        """Placed findings by name."""
        return {finding.name: finding for finding in self.placed}


@dataclass(frozen=True, kw_only=True)
class _Scanner:
    """How the patient was scanned; none of it has to do with a finding."""

    shape: tuple[int, int, int]
    spacing_mm: Point
    first_voxel_mm: Point
    rotation: float
    noise_hu: float
    smoothing: float
    is_circular: bool


def make_phantom(seed: int, findings: Collection[str], *, patient_seed: int | None = None) -> Phantom:
    """Make a thorax with exactly these findings.

    Switching a finding on or off under one seed changes nothing else in the volume, except where lesions
    make room for each other.

    Args:
        seed: Any integer >= 0.
        findings: Entries of ``PHANTOM_FINDINGS``; empty for a normal thorax.
        patient_seed: Seed of the habitus, to scan one patient twice. None: ``seed``.

    Raises:
        ValueError: If a finding is unknown or the seed is negative.
    """
    unknown = sorted(set(findings) - set(PHANTOM_FINDINGS))
    if unknown:
        raise ValueError(
            f"findings must be of {list(PHANTOM_FINDINGS)}, got {unknown}. Use the names of PHANTOM_FINDINGS."
        )
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}. Pass a non-negative integer.")
    habitus = draw_habitus(np.random.default_rng([seed if patient_seed is None else patient_seed, _HABITUS]))
    scanner = _draw_scanner(habitus, np.random.default_rng([seed, _SCANNER]))
    canvas = Canvas(scanner.shape, scanner.spacing_mm, scanner.first_voxel_mm, scanner.rotation)
    placed, lesions = _paint_thorax(canvas, habitus, set(findings), seed)
    _paint_outside(canvas, habitus, np.random.default_rng([seed, _OUTSIDE]))
    _add_noise(canvas.volume_hu, scanner, np.random.default_rng([seed, _NOISE]))
    return Phantom(
        volume_hu=np.rint(canvas.volume_hu.clip(*HU_RANGE)).astype(np.int16),
        spacing_mm=scanner.spacing_mm,
        placed=tuple(placed[name] for name in PHANTOM_FINDINGS if name in placed),
        seed=seed,
        habitus=habitus,
        lesions=lesions,
    )


def _paint_thorax(
    canvas: Canvas, habitus: Habitus, findings: set[str], seed: int
) -> tuple[dict[str, PlacedFinding], dict[str, NDArray[np.bool_]]]:
    """Paint the patient; return the findings and their lesions by name."""
    streams = {
        name: np.random.default_rng([seed, _FIRST_FINDING + i]) for i, name in enumerate(PHANTOM_FINDINGS)
    }
    growth = draw_heart_growth(streams["cardiomegaly"]) if "cardiomegaly" in findings else 1.0
    anatomy = Anatomy(canvas, habitus, growth)
    rng = np.random.default_rng([seed, _ANATOMY])
    anatomy.paint_body(rng)
    anatomy.paint_lungs_and_ribs(rng)
    anatomy.paint_lung_vessels(rng)
    anatomy.paint_heart()
    anatomy.paint_great_vessels_and_airways()
    anatomy.paint_bones()
    placed, lesions = {}, {}
    for name in (name for name in PAINT_ORDER if name in findings):
        before = canvas.volume_hu.copy()
        placed[name] = paint_finding(name, anatomy, streams[name])
        lesions[name] = np.abs(canvas.volume_hu - before) > LESION_HU
    if "cardiomegaly" in findings:
        placed["cardiomegaly"] = describe_cardiomegaly(anatomy, growth)
        heart = anatomy.heart_center_mm, anatomy.heart_radii_mm, anatomy.heart_axes
        box, weight = canvas.ellipsoid(*heart)
        lesions["cardiomegaly"] = np.zeros(canvas.volume_hu.shape, bool)
        lesions["cardiomegaly"][box.voxels] = weight > 0.5
    return placed, lesions


def _draw_scanner(habitus: Habitus, rng: np.random.Generator) -> _Scanner:
    """Draw field of view, sampling, position on the table and noise."""
    top = habitus.apex_mm + rng.uniform(8, 45)
    bottom = habitus.diaphragm_mm - 62 * habitus.scale - rng.uniform(0, 50)
    extent = top - bottom
    spacing_z = round(float(np.clip(extent / rng.integers(66, 100), 2.5, 5.0)), 2)
    num_slices = int(np.clip(round(extent / spacing_z), 64, 100))
    body = 2 * (habitus.lung_half_width_mm * 1.92 + habitus.muscle_mm + habitus.fat_mm)
    num_pixels = int(rng.integers(96, 129))
    spacing = round(float(np.clip(body * rng.uniform(0.9, 1.3) / num_pixels, 2.5, 4.0)), 2)
    half = 0.5 * spacing * (num_pixels - 1)
    return _Scanner(
        shape=(num_slices, num_pixels, num_pixels),
        spacing_mm=(spacing_z, spacing, spacing),
        first_voxel_mm=(bottom, -half + rng.uniform(-8, 22), -half + rng.uniform(-12, 12)),
        rotation=float(rng.normal(0, 0.05)),
        noise_hu=float(8 + 32 * rng.random() ** 2),
        smoothing=float(rng.uniform(0, 0.32)),
        is_circular=bool(rng.random() < 0.4),
    )


def _paint_outside(canvas: Canvas, habitus: Habitus, rng: np.random.Generator) -> None:
    """Paint the table and, often, metal outside the body: no label may be read off the brightest voxel."""
    y, x = canvas.table_y_mm, canvas.table_x_mm
    back = habitus.lung_half_depth_mm + habitus.muscle_mm + habitus.fat_mm
    surface = back * 1.06 + 14 + rng.uniform(0, 8) - 0.0006 * rng.uniform(0.4, 1.6) * x**2
    inside = np.clip((y - surface) / 3, 0, 1) * (np.abs(x) < 235)
    shell = inside * (np.abs(y - surface - 3) < 5)
    for weight, hu in (
        (inside * (y < surface + 30), rng.uniform(-960, -880)),
        (shell, rng.uniform(-300, 150)),
    ):
        canvas.volume_hu += weight.astype(np.float32) * (np.float32(hu) - canvas.volume_hu)
    if rng.random() < 0.5:
        metal = float(rng.uniform(700, 3071))
        for _ in range(int(rng.integers(1, 5))):  # zippers and clasps of clothing
            start = (rng.uniform(-90, 80), -back * 1.06 - 14, rng.uniform(-90, 90))
            end = (start[0] + rng.uniform(-40, 40), start[1], start[2] + rng.uniform(-30, 30))
            canvas.paint_tubes([start, end], [3.0, 3.0], metal)


def _add_noise(volume_hu: Float, scanner: _Scanner, rng: np.random.Generator) -> None:
    """Add noise with the in-plane correlation of a reconstruction kernel; cut the field of view."""
    noise = rng.standard_normal(volume_hu.shape, dtype=np.float32)
    side = np.float32(scanner.smoothing)
    for axis in (1, 2):
        before, after = [slice(None)] * 3, [slice(None)] * 3
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        shifted = noise.copy()
        shifted[tuple(before)] += side * noise[tuple(after)]
        shifted[tuple(after)] += side * noise[tuple(before)]
        noise = shifted
    noise *= np.float32(scanner.noise_hu / (1 + 2 * scanner.smoothing**2))
    volume_hu += noise
    if scanner.is_circular:
        num_pixels = volume_hu.shape[1]
        offset = np.arange(num_pixels) - 0.5 * (num_pixels - 1)
        outside = offset[:, None] ** 2 + offset[None, :] ** 2 > (0.5 * num_pixels) ** 2
        volume_hu[:, outside] = AIR_HU - 24
