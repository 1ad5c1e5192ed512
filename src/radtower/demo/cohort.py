"""Writes a folder of phantom studies: NIfTI volumes, manifest with reports, gold labels of the texts."""

import csv
import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from radtower.demo.phantom import Phantom, make_phantom
from radtower.demo.phantom_findings import PHANTOM_FINDINGS
from radtower.demo.phantom_report import write_report

MANIFEST_NAME = "manifest.csv"
GOLD_NAME = "gold.csv"
MANIFEST_COLUMNS: tuple[str, ...] = (
    "study_id",
    "patient_id",
    "image_path",
    "findings",
    "impression",
    "report",
    "split",
)
DEFAULT_PREVALENCE: dict[str, float] = {
    "medical_material": 0.3,
    "cardiomegaly": 0.3,
    "pericardial_effusion": 0.28,
    "coronary_artery_wall_calcification": 0.35,
    "hiatal_hernia": 0.28,
    "lymphadenopathy": 0.35,
    "emphysema": 0.3,
    "lung_nodule": 0.42,
    "lung_opacity": 0.35,
    "pleural_effusion": 0.32,
    "consolidation": 0.3,
}
P_SECOND_STUDY = 0.15  # share of patients who come twice
P_KEPT = 0.7  # chance that a finding is as it was at the second study; prevalence stays the same
_COHORT_STREAM = 200


@dataclass(frozen=True, kw_only=True)
class _Study:
    study_id: str
    patient_id: str
    split: str
    seed: int
    patient_seed: int
    findings: tuple[str, ...]


def write_cohort(
    folder: Path,
    num_studies: int,
    seed: int,
    splits: Mapping[str, float],
    *,
    prevalence: Mapping[str, float] | None = None,
    num_workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> Path:
    """Write a cohort and return the path of its manifest.

    ``manifest.csv`` has one column per finding with the truth of the volume (0 or 1); ``gold.csv`` has what
    the text of the report says about it (``present``, ``absent``, ``uncertain``, ``not_mentioned``).
    The same arguments give the same arrays and tables, whatever ``num_workers`` is.

    Args:
        folder: Created if absent; files of the same name are overwritten.
        num_studies: Number of studies; some patients have two, always in one split.
        seed: Any integer >= 0.
        splits: Share of the patients by split name; must sum to 1.
        prevalence: Probability by finding; findings that are not listed keep their default. None: defaults.
        num_workers: Processes that make volumes; 1 works in this process.
        on_progress: Called with the number of finished studies after each.

    Raises:
        ValueError: If a number, a share or a finding is out of range.
    """
    chances = DEFAULT_PREVALENCE | dict(prevalence or {})
    _check(num_studies, seed, splits, chances)
    if num_workers < 1:
        raise ValueError(f"num_workers must be 1 or more, got {num_workers}. Pass 1 to use no subprocess.")
    studies = _plan(num_studies, seed, splits, chances)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    manifest, gold = [], []
    for row, status in _written(studies, folder, num_workers):
        manifest.append(row)
        gold.append(status)
        if on_progress is not None:
            on_progress(len(manifest))
    _write_table(folder / MANIFEST_NAME, (*MANIFEST_COLUMNS, *PHANTOM_FINDINGS), manifest)
    _write_table(folder / GOLD_NAME, ("study_id", *PHANTOM_FINDINGS), gold)
    return folder / MANIFEST_NAME


def write_volume(phantom: Phantom, path: Path) -> None:
    """Write the volume with LPS geometry: identity direction, spacing, origin at the center of the array."""
    image = sitk.GetImageFromArray(phantom.volume_hu)
    spacing = phantom.spacing_mm[::-1]  # SimpleITK counts (X, Y, Z)
    image.SetSpacing(spacing)
    size = phantom.volume_hu.shape[::-1]
    image.SetOrigin([-0.5 * step * (n - 1) for step, n in zip(spacing, size, strict=True)])
    sitk.WriteImage(image, str(path), useCompression=True)


def _check(num_studies: int, seed: int, splits: Mapping[str, float], chances: Mapping[str, float]) -> None:
    if num_studies < 1:
        raise ValueError(f"num_studies must be 1 or more, got {num_studies}. Ask for at least one study.")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}. Pass a non-negative integer.")
    if not splits or min(splits.values()) < 0 or abs(sum(splits.values()) - 1) > 1e-6:
        raise ValueError(
            f"splits must be shares that sum to 1, got {dict(splits)}. Pass for example "
            "{'train': 0.7, 'validation': 0.1, 'test': 0.2}."
        )
    unknown = sorted(set(chances) - set(PHANTOM_FINDINGS))
    if unknown:
        raise ValueError(
            f"prevalence must name findings of {list(PHANTOM_FINDINGS)}, got {unknown}. Correct the names."
        )
    wrong = {name: chance for name, chance in chances.items() if not 0 <= chance <= 1}
    if wrong:
        raise ValueError(f"prevalence must be between 0 and 1, got {wrong}. Pass probabilities.")


def _plan(
    num_studies: int, seed: int, splits: Mapping[str, float], chances: Mapping[str, float]
) -> list[_Study]:
    """Draw patients, studies, findings and splits."""
    rng = np.random.default_rng([seed, _COHORT_STREAM])
    visits: list[int] = []
    while sum(visits) < num_studies:
        visits.append(2 if rng.random() < P_SECOND_STUDY and sum(visits) + 2 <= num_studies else 1)
    names = _assign_splits(len(visits), splits, rng)
    order = np.array([chances[name] for name in PHANTOM_FINDINGS])
    studies: list[_Study] = []
    for patient, num_visits in enumerate(visits):
        patient_seed = int(rng.integers(2**31))
        is_on = rng.random(len(order)) < order
        for visit in range(num_visits):
            if visit:
                again = rng.random(len(order)) < order
                is_on = np.where(rng.random(len(order)) < P_KEPT, is_on, again)
            studies.append(
                _Study(
                    study_id=f"phantom-{patient + 1:04d}-{visit + 1}",
                    patient_id=f"phantom-{patient + 1:04d}",
                    split=names[patient],
                    seed=int(rng.integers(2**31)),
                    patient_seed=patient_seed,
                    findings=tuple(
                        name for name, on in zip(PHANTOM_FINDINGS, is_on.tolist(), strict=True) if on
                    ),
                )
            )
    return studies


def _assign_splits(num_patients: int, splits: Mapping[str, float], rng: np.random.Generator) -> list[str]:
    """Deal the patients in the exact shares, up to rounding, in random order."""
    bounds = np.rint(np.cumsum(list(splits.values())) * num_patients).astype(int)
    position = rng.permutation(num_patients)
    names = list(splits)
    return [names[int(np.searchsorted(bounds, place, side="right"))] for place in position.tolist()]


def _written(
    studies: list[_Study], folder: Path, num_workers: int
) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Write the volumes; yield the rows of both tables, in the order of the studies."""
    write = functools.partial(_write_study, folder=folder)
    if num_workers == 1:
        yield from map(write, studies)
        return
    # Spawned, not forked: the caller may hold threads of torch, and a fork of them can hang.
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(write, studies, chunksize=4)


def _write_study(study: _Study, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    phantom = make_phantom(study.seed, study.findings, patient_seed=study.patient_seed)
    report = write_report(phantom, study.seed)
    image_path = f"images/{study.study_id}.nii.gz"
    write_volume(phantom, folder / image_path)
    row = {
        "study_id": study.study_id,
        "patient_id": study.patient_id,
        "image_path": image_path,
        "findings": report.findings,
        "impression": report.impression,
        "report": report.text,
        "split": study.split,
    }
    row |= {name: str(int(name in study.findings)) for name in PHANTOM_FINDINGS}
    return row, {"study_id": study.study_id} | report.status


def _write_table(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
