"""Work in parts on one or many machines: the executors of datatrove (extra ``cluster``)."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """Where tasks run.

    Args:
        executor: ``local`` (tasks one after the other), ``slurm`` or ``ray``.
        tasks: Parts of the work.
        num_workers: Processes, and so cores, per task.
        memory_gb: Per process.
        partition: Of Slurm.
        time: Limit of a Slurm task, ``hours:minutes:seconds``.

    Raises:
        ValueError: If a number is below 1, or there is no partition for Slurm.
    """

    executor: Literal["local", "slurm", "ray"]
    tasks: int = 1
    num_workers: int = 1
    memory_gb: int = 6
    partition: str | None = None
    time: str = "24:00:00"

    def __post_init__(self) -> None:
        for name in ("tasks", "num_workers", "memory_gb"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}. Use 1 or more.")
        if self.executor == "slurm" and self.partition is None:
            raise ValueError("partition must be given for slurm, got None. Ask sinfo for its name.")

    def check_machine(self) -> None:
        """Refuse to submit where there is no Slurm.

        Raises:
            FileNotFoundError: If Slurm's ``sbatch`` is not on this machine.
        """
        if self.executor == "slurm" and shutil.which("sbatch") is None:
            raise FileNotFoundError(
                "executor slurm must find the command sbatch, got none in the PATH. Submit from a login node."
            )


def make_executor(plan: ClusterPlan, step: PipelineStep, logs: Path, job_name: str) -> PipelineExecutor:
    """Return what runs a step in ``plan.tasks`` tasks; nothing runs yet."""
    # Done tasks are not skipped: the work itself knows better what is done, and failures are tried again.
    if plan.executor == "slurm":
        return slurm_job(plan, step, logs, job_name, plan.tasks)
    if plan.executor == "ray":
        return RayPipelineExecutor(
            [step],
            tasks=plan.tasks,
            cpus_per_task=plan.num_workers,
            mem_per_cpu_gb=plan.memory_gb,
            logging_dir=str(logs),
            skip_completed=False,
        )
    return LocalPipelineExecutor(
        [step], tasks=plan.tasks, workers=1, logging_dir=str(logs), skip_completed=False
    )


def slurm_job(
    plan: ClusterPlan, step: PipelineStep, logs: Path, job_name: str, tasks: int
) -> SlurmPipelineExecutor:
    """Return a Slurm job of so many tasks; it is not submitted yet."""
    is_virtual = sys.prefix != sys.base_prefix
    return SlurmPipelineExecutor(
        [step],
        tasks=tasks,
        time=plan.time,
        partition=plan.partition,
        cpus_per_task=plan.num_workers,
        mem_per_cpu_gb=plan.memory_gb,
        job_name=job_name,
        qos=None,  # that of the user
        venv_path=str(Path(sys.prefix) / "bin" / "activate") if is_virtual else None,
        logging_dir=str(logs),
        skip_completed=False,
    )
