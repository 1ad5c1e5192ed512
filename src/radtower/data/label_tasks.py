"""Labeling in parts on one or many machines, through the executors of datatrove (extra ``cluster``).

Three steps: the reports without an answer are split, each task asks for its part into a ledger of its own,
and the ledger takes the parts over and writes the table. After a kill, the same command goes on.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from datatrove.pipeline.base import PipelineStep

from radtower.data.report_table import ReportStream
from radtower.data.task_executors import ClusterPlan, make_executor, slurm_job
from radtower.labeling.answers.generation import Generation
from radtower.labeling.answers.labeling_summary import LabelingPlan, LabelingSummary
from radtower.labeling.answers.ledger import SUFFIX, Ledger, ReportCounts, open_ledger
from radtower.labeling.answers.ledger_parts import part_output
from radtower.labeling.findings import FindingsSet
from radtower.labeling.labeler import LabelerBackend, LabelingRun
from radtower.labeling.report_labels import ReportLabels

JOB_NAME = "radtower-label"
PLAN_NAME = "plan.json"


class ReadyLabeler(Protocol):
    """A backend, and what it answers for: all that was asked for, or less."""

    @property
    def backend(self) -> LabelerBackend: ...
    @property
    def findings(self) -> FindingsSet: ...
    @property
    def notes(self) -> Callable[[], list[str]]:
        """Gives sentences about what was done; a number at the beginning is a count."""
        ...


@dataclass(frozen=True)
class LabelingJob:
    """What is to be labeled, how, and where to; every task gets it.

    Args:
        reports: Where all tasks can read them.
        build: Makes the backend for a findings set; each task calls it.
        findings: The list to ask about.
        output: Label table; all tasks see its folder.
        should_retry_failed: As in ``label_reports``.
    """

    reports: ReportStream
    build: Callable[[FindingsSet], ReadyLabeler]
    findings: FindingsSet
    output: Path
    should_retry_failed: bool = False

    @property
    def ledger_folder(self) -> Path:
        """Folder of the ledger, and of what tasks leave."""
        return self.output.with_name(self.output.name + SUFFIX)

    def plan(self, num_tasks: int) -> LabelingPlan:
        """Split what has no answer into parts."""
        with open_ledger(self.output) as ledger:
            labeler, run = self._begin(ledger, ledger.register(self.reports))
            run.split(self.output, num_tasks)
            stored = {
                "plan": asdict(run.plan),
                "generation": dict(run.generation.parts),
                "findings": labeler.findings.model_dump(mode="json"),
            }
        (self.ledger_folder / PLAN_NAME).write_text(json.dumps(stored), encoding="utf-8")
        return run.plan

    def label_part(self, number: int) -> int:
        """Ask for the reports of a part; returns how many there were to ask.

        Raises:
            ValueError: If the backend is not the one of the plan.
        """
        part = part_output(self.output, number)
        if part is None:
            return 0
        with open_ledger(part) as ledger:
            counts = ReportCounts(ledger.num_registered(), ledger.num_registered())
            if not counts.num_unique:
                return 0
            labeler, run = self._begin(ledger, counts)
            if run.plan.changes:
                raise ValueError(
                    f"a task must label as planned, got other settings: {'; '.join(run.plan.changes)}. "
                    "Give all tasks the same model."
                )
            run.label()
            for note in labeler.notes():
                ledger.note(note)
            return run.plan.num_to_ask

    def finish(self) -> LabelingSummary:
        """Take the parts over, and write the table of what was planned."""
        stored = json.loads((self.ledger_folder / PLAN_NAME).read_text(encoding="utf-8"))
        plan = LabelingPlan(**stored["plan"] | {"changes": tuple(stored["plan"]["changes"])})
        findings = FindingsSet.model_validate(stored["findings"])
        counts = ReportCounts(plan.num_reports, plan.num_unique)
        with open_ledger(self.output) as ledger:
            backend = _Recorded(Generation(stored["generation"]))
            summary = LabelingRun(ledger, counts, self.reports, backend, findings).write(self.output)
            return replace(summary, plan=plan, notes=ledger.notes())

    def _begin(self, ledger: Ledger, counts: ReportCounts) -> tuple[ReadyLabeler, LabelingRun]:
        labeler = self.build(self.findings)
        run = LabelingRun(
            ledger,
            counts,
            self.reports,
            labeler.backend,
            labeler.findings,
            should_retry_failed=self.should_retry_failed,
        )
        return labeler, run


class _Recorded:
    """Stands for the backend whose answers are there already."""

    def __init__(self, generation: Generation) -> None:
        parts = generation.parts
        self.name = str(parts["labeler"])
        self.model_id = str(parts["model_id"])
        prompt_version = parts["prompt_version"]
        self.prompt_version = None if prompt_version is None else str(prompt_version)
        self.settings = {
            name.removeprefix("settings."): value
            for name, value in parts.items()
            if name.startswith("settings.")
        }

    def label(self, reports: Iterable[str]) -> Iterator[tuple[int, ReportLabels]]:
        return iter(())


class LabelingStep(PipelineStep):
    """A step of a labeling job.

    Args:
        name: For the logs.
        counted: What ``work`` counts.
        work: Does the part of a task, by its rank.
    """

    type = "radtower"

    def __init__(self, name: str, counted: str, work: Callable[[int], int]) -> None:
        super().__init__()
        self.name = name
        self.counted = counted
        self.work = work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do it."""
        self.stat_update(self.counted, value=self.work(rank), unit="task")


def label_on_cluster(
    plan: ClusterPlan, job: LabelingJob, on_plan: Callable[[LabelingPlan], None] = lambda plan: None
) -> LabelingSummary | str:
    """Run or submit a labeling job.

    Args:
        plan: Where it runs.
        job: What to label; its reports and its output lie where all tasks see them.
        on_plan: Called before the first report is labeled; not for Slurm, where a job plans.

    Returns:
        The summary when everything is done; the Slurm job that ends last when it was submitted.

    Raises:
        BlockingIOError: If another process or a task of an earlier job writes the same table.
        FileNotFoundError: If Slurm's ``sbatch`` is not on this machine.
    """
    plan.check_machine()
    job.output.parent.mkdir(parents=True, exist_ok=True)
    job.ledger_folder.mkdir(mode=0o700, exist_ok=True)
    logs = job.ledger_folder.absolute() / "logs"
    ask = LabelingStep("Label reports", "reports", job.label_part)
    if plan.executor != "slurm":
        on_plan(job.plan(plan.tasks))
        make_executor(plan, ask, logs / "label", JOB_NAME).run()
        return job.finish()
    split = LabelingStep("Plan labels", "reports", lambda rank: job.plan(plan.tasks).num_to_ask)
    write = LabelingStep("Write labels", "labeled", lambda rank: job.finish().num_labeled)
    first = slurm_job(plan, split, logs / "plan", JOB_NAME, tasks=1)
    tasks = slurm_job(plan, ask, logs / "label", JOB_NAME, tasks=plan.tasks)
    tasks.depends = first
    last = slurm_job(plan, write, logs / "finish", JOB_NAME, tasks=1)
    last.depends = tasks
    last.run_on_dependency_fail = True
    last.run()
    return str(last.job_id)
