"""Preprocessing in parts on one or many machines, through the executors of datatrove (extra ``cluster``).

Each task takes its part of the manifest and writes files of its own into the cache, so that tasks can run in
any order, at once, and again.
"""

from pathlib import Path
from typing import Any

from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from radtower.data.manifest import read_manifest
from radtower.data.preprocessing.cache_folder import (
    Part,
    prepare_folder,
    preprocess_part,
    tidy,
    usable_volumes,
)
from radtower.data.preprocessing.provenance import settings_hash
from radtower.data.task_executors import ClusterPlan, make_executor, slurm_job
from radtower.processing.image_processing_ct3d import CT3DImageProcessor

LOG_FOLDER = "logs"
JOB_NAME = "radtower-preprocess"


class PreprocessScans(PipelineStep):
    """Prepare the scans of one task.

    Args:
        manifest: Table of studies.
        folder: Cache folder, prepared already; its processor is used.
        num_workers: Processes of the task, at least 1: the one that is killed is not the task.
    """

    name = "Preprocess scans"
    type = "radtower"

    def __init__(self, manifest: Path, folder: Path, num_workers: int = 1) -> None:
        super().__init__()
        self.manifest = str(manifest)
        self.folder = str(folder)
        self.num_workers = num_workers

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do the scans of ``rank`` that are not in the cache yet."""
        folder, part = Path(self.folder), Part(rank, world_size)
        image_processor = CT3DImageProcessor.from_pretrained(folder)
        scans = {
            volume_id: scan
            for volume_id, scan in read_manifest(self.manifest, needs_reports=False).scans().items()
            if part.holds(volume_id)
        }
        preprocess_part(scans, image_processor, folder, part=part, num_workers=self.num_workers)
        volumes, failures = usable_volumes(folder, settings_hash(image_processor))
        self.stat_update("scans", value=sum(volume_id in volumes for volume_id in scans), unit="task")
        self.stat_update("failures", value=sum(volume_id in failures for volume_id in scans), unit="task")


class TidyCache(PipelineStep):
    """Fill up the shards when every task has ended.

    Args:
        folder: Cache folder.
    """

    name = "Tidy the cache"
    type = "radtower"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = str(folder)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do it; there is one task."""
        tidy(Path(self.folder), CT3DImageProcessor.from_pretrained(self.folder))


def run_on_cluster(
    plan: ClusterPlan,
    manifest: str | Path,
    image_processor: CT3DImageProcessor,
    folder: str | Path,
    should_replace: bool = False,
) -> str | None:
    """Run or submit the preprocessing of a manifest.

    Args:
        plan: Where it runs.
        manifest: Table of studies; tasks read it again, so it and the scans lie where all of them see them.
        image_processor: Its settings are saved in the cache.
        folder: Cache folder, which all tasks see.
        should_replace: Make volumes of other settings again, instead of refusing the folder.

    Returns:
        The Slurm job that ends last; None when everything is done.

    Raises:
        FileExistsError: If ``folder`` holds something else than a cache, or volumes of other settings.
        FileNotFoundError: If Slurm's ``sbatch`` is not on this machine.
    """
    folder = Path(folder).absolute()
    plan.check_machine()
    prepare_folder(folder, image_processor, should_replace)
    step = PreprocessScans(Path(manifest).absolute(), folder, plan.num_workers)
    executor = make_executor(plan, step, folder / LOG_FOLDER / "preprocess", JOB_NAME)
    if not isinstance(executor, SlurmPipelineExecutor):
        executor.run()
        tidy(folder, image_processor)
        return None
    last = slurm_job(plan, TidyCache(folder), folder / LOG_FOLDER / "tidy", JOB_NAME, tasks=1)
    last.depends = executor
    last.run_on_dependency_fail = True
    last.run()
    return str(last.job_id)
