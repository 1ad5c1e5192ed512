"""What ``radtower evaluate retrieval`` was asked for, checked before any vector is made.

Tasks: ``pairs``, scan to report and back; ``images``, scan to scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd

from radtower.data.manifest import Manifest
from radtower.evaluation.pairs.pair_retrieval import PROTOCOLS, Protocol
from radtower.evaluation.retrieval.images.image_labels import RELEVANCE_KINDS
from radtower.evaluation.retrieval.images.image_retrieval import EXCLUSIONS, LEGACY_CT_CLIP, Exclusion
from radtower.evaluation.retrieval.ranks import check_ks

Task = Literal["pairs", "images"]
TASKS: tuple[Task, ...] = get_args(Task)
PAIR_KS = (1, 5, 10, 50, 100)
IMAGE_KS = (1, 5, 10, 50)


@dataclass(frozen=True, kw_only=True)
class RetrievalPlan:
    """What to measure.

    Args:
        tasks: One or both.
        pair_protocols: None of them takes those that differ.
        exclusions: Of image to image, likewise.
        is_legacy: Whether to measure as the script of CT-CLIP does, too.
        ks: Numbers of items looked at; None are the usual ones of each task.
    """

    tasks: tuple[Task, ...]
    pair_protocols: tuple[Protocol, ...]
    exclusions: tuple[Exclusion, ...]
    is_legacy: bool
    ks: tuple[int, ...]

    @property
    def pair_ks(self) -> tuple[int, ...]:
        """Numbers of scans or reports looked at."""
        return self.ks or PAIR_KS

    def check_data(self, split: str, galleries: Sequence[str], num_pairs: int) -> None:
        """Refuse what does not fit the data; ask before the vectors are made.

        Args:
            split: Of the volumes that ask.
            galleries: Splits where images are searched.
            num_pairs: Volumes of the split that asks.

        Raises:
            ValueError: If there are galleries and images are not measured, or a number that was asked for is
                too large, or all of the usual ones are.
        """
        if galleries and "images" not in self.tasks:
            raise ValueError(
                f"gallery splits must come with the task images, got {', '.join(galleries)} for pairs only. "
                "Add --task images."
            )
        if set(galleries) - {split} and self.is_legacy:
            raise ValueError(
                f"the protocol legacy-ct-clip must search the split that asks, got {', '.join(galleries)}. "
                "Leave gallery splits out."
            )
        if "pairs" in self.tasks:
            check_ks(self.ks or PAIR_KS[:1], num_pairs)

    @property
    def image_ks(self) -> tuple[int, ...]:
        """Numbers of images looked at."""
        return self.ks or IMAGE_KS

    @property
    def measures_images(self) -> bool:
        """Whether ``measure_images`` is asked for, and not CT-CLIP's script alone."""
        return "images" in self.tasks and bool(self.exclusions or not self.is_legacy)


def plan_retrieval(
    tasks: Sequence[str],
    protocols: Sequence[str],
    ks: Sequence[int],
    relevance: str = "findings",
    *,
    has_reports: bool,
) -> RetrievalPlan:
    """Check what was asked for.

    Args:
        tasks: None of them takes pairs, or images where the tower reads images only.
        protocols: Of pairs and of images, in one list.
        ks: Numbers of items looked at; none takes the usual ones.
        relevance: What makes images alike.
        has_reports: Whether the tower reads reports.

    Raises:
        ValueError: If a name is unknown, a protocol is of no task, or the tower cannot do a task.
    """
    for name in tasks:
        if name not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}. Choose one.")
    if relevance not in RELEVANCE_KINDS:
        raise ValueError(
            f"relevance must be one of {', '.join(RELEVANCE_KINDS)}, got {relevance!r}. Choose one."
        )
    if LEGACY_CT_CLIP in protocols and relevance != "findings":
        raise ValueError(f"relevance must be findings for the protocol legacy-ct-clip, got {relevance}.")
    chosen = tuple(task for task in TASKS if task in tasks) or (("pairs",) if has_reports else ("images",))
    if "pairs" in chosen and not has_reports:
        raise ValueError("task must be images for an image tower, got pairs. It reads no reports.")
    of_task: dict[Task, tuple[str, ...]] = {"pairs": PROTOCOLS, "images": (*EXCLUSIONS, LEGACY_CT_CLIP)}
    known = [name for task in chosen for name in of_task[task]]
    for name in protocols:
        if name not in known:
            others = [task for task in TASKS if name in of_task[task]]
            advice = f"Add --task {others[0]}." if others else "Choose one."
            raise ValueError(f"protocol must be one of {', '.join(known)}, got {name!r}. {advice}")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks must be at least 1, got {[k for k in ks if k < 1]}. Name larger ones.")
    return RetrievalPlan(
        tasks=chosen,
        pair_protocols=tuple(name for name in PROTOCOLS if name in protocols),
        exclusions=tuple(name for name in EXCLUSIONS if name in protocols),
        is_legacy=LEGACY_CT_CLIP in protocols,
        ks=tuple(dict.fromkeys(ks)),
    )


def volumes_needed(manifest: Manifest, split: str, galleries: Sequence[str]) -> Manifest:
    """Return the volumes that ask, and after them those of further splits that are searched.

    Raises:
        ValueError: If a split has no volume.
    """
    splits = dict.fromkeys((split, *galleries))
    frames = [manifest.split(name).frame for name in splits]  # type: ignore[arg-type]
    return Manifest(pd.concat(frames, ignore_index=True))
