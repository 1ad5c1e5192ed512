import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from radtower.data.label_tasks import LabelingJob, label_on_cluster
from radtower.data.report_table import ReportStream
from radtower.data.task_executors import ClusterPlan
from radtower.labeling.answers.ledger import open_ledger
from radtower.labeling.answers.ledger_parts import part_output
from radtower.labeling.findings import FindingsSet, Status, load_findings
from radtower.labeling.label_table import read_labels
from radtower.labeling.labeler import label_reports
from radtower.labeling.report_labels import ReportLabels, StopLabeling
from radtower.processing.report_text import report_sha256

FINDINGS = load_findings("ct_rate_18")
KEYS = ("emphysema", "pleural_effusion")
THREE = ClusterPlan(executor="local", tasks=3)


class LoggingBackend:
    """Writes down what it is asked; fails, stops and breaks where the report says so."""

    name = "logging"
    prompt_version = "v1"

    def __init__(self, log: Path, model_id: str = "m") -> None:
        self.log = log
        self.model_id = model_id
        self.settings = {"max_tokens": 7}

    def label(self, reports):
        for position, report in enumerate(reports):
            with self.log.open("a", encoding="utf-8") as log:
                log.write(report + "\n")
            yield position, self.answer(report)

    def answer(self, report: str) -> ReportLabels:
        if report == "stop":
            raise StopLabeling("unauthorized", "the key must be good, got HTTP 401. Check it.")
        if report == "break":
            raise RuntimeError("a bug")
        if report == "fail":
            return ReportLabels.failed(KEYS, "http_500", tokens_in=3, cost_usd=0.5)
        status = Status.PRESENT if "7" in report else Status.ABSENT
        return ReportLabels(
            status=dict.fromkeys(KEYS, status),
            score=dict.fromkeys(KEYS, 1 / len(report)),
            evidence=dict.fromkeys(KEYS, "nodule"),
            tokens_in=len(report),
            cost_usd=0.25,
        )


@dataclass(frozen=True)
class Ready:
    backend: LoggingBackend
    findings: FindingsSet

    def notes(self) -> list[str]:
        return ["1 tasks are done.", "It was quick."]


@dataclass(frozen=True)
class Builder:
    log: Path
    model_id: str = "m"

    def build(self, findings: FindingsSet) -> Ready:
        return Ready(LoggingBackend(self.log, self.model_id), findings.subset(KEYS))


@pytest.fixture
def make_job(tmp_path):
    def make(texts: list[str], model_id: str = "m", **options) -> LabelingJob:
        lines = [f"r{row},{text}" for row, text in enumerate(texts)]
        (tmp_path / "reports.csv").write_text("\n".join(["id,text", *lines]) + "\n")
        stream = ReportStream(tmp_path / "reports.csv", "id", "text")
        builder = Builder(tmp_path / "asked.log", model_id)
        return LabelingJob(stream, builder.build, FINDINGS, tmp_path / "out" / "labels.parquet", **options)

    return make


def asked(job: LabelingJob) -> Counter:
    log = job.output.parents[1] / "asked.log"
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


TEXTS = [f"nodule {row % 9}" for row in range(14)] + [""]


def assert_complete(job: LabelingJob) -> None:
    assert asked(job) == {f"nodule {row}": 1 for row in range(9)}
    one = job.output.with_name("one.parquet")
    backend = LoggingBackend(job.output.parent / "one.log")
    label_reports(list(job.reports), backend, FINDINGS.subset(KEYS), one)
    assert read_labels(job.output).frame.equals(read_labels(one).frame)
    assert not (job.ledger_folder / "parts").exists()
    assert stat.S_IMODE(job.ledger_folder.stat().st_mode) == 0o700


def test_local_tasks_write_the_table_of_a_single_run_and_ask_nothing_twice(make_job):
    job = make_job(TEXTS)
    summary = label_on_cluster(THREE, job)
    assert (summary.num_labeled, summary.num_failed) == (9, {"empty_report": 1})
    assert (summary.plan.num_reports, summary.plan.num_unique, summary.plan.num_to_ask) == (15, 10, 9)
    assert (summary.tokens_in, summary.cost_usd) == (72, 2.25)
    assert summary.notes == ("3 tasks are done.", "It was quick.")
    assert_complete(job)
    again = label_on_cluster(ClusterPlan(executor="local", tasks=2), job)
    assert again.plan.num_to_ask == 0
    assert_complete(job)
    # A run of one process goes on from there.
    backend = LoggingBackend(job.output.parents[1] / "asked.log")
    label_reports(list(job.reports), backend, FINDINGS.subset(KEYS), job.output)
    assert_complete(job)


def test_every_task_gets_the_reports_of_its_rest(make_job):
    job = make_job(TEXTS)
    job.plan(3)
    for number in range(3):
        job.label_part(number)
        done = {f"nodule {row}" for row in range(9) if int(report_sha256(f"nodule {row}"), 16) % 3 <= number}
        assert set(asked(job)) == done


def test_tasks_that_were_killed_lose_nothing(make_job):
    job = make_job([*TEXTS, "break"])
    with pytest.raises(RuntimeError, match="a bug"):
        label_on_cluster(ClusterPlan(executor="local", tasks=2), job)
    num_asked = asked(job).total()
    assert num_asked > 1
    assert not job.output.exists()
    job = make_job(TEXTS)
    summary = label_on_cluster(THREE, job)
    assert summary.plan.num_to_ask == 9 - (num_asked - 1)
    assert asked(job) == {f"nodule {row}": 1 for row in range(9)} | {"break": 1}


def test_a_stopped_task_is_listed_with_its_reason_and_the_others_go_on(make_job):
    job = make_job([*TEXTS, "stop"])
    summary = label_on_cluster(THREE, job)
    assert summary.stopped == "the key must be good, got HTTP 401. Check it."
    assert summary.num_failed["unauthorized"] >= 1
    assert summary.num_labeled == 10 - summary.num_failed["unauthorized"]
    assert label_on_cluster(THREE, make_job(TEXTS)).stopped is None


def test_a_run_in_which_all_tasks_stop_is_an_error(make_job):
    job = make_job(["stop"])
    with pytest.raises(StopLabeling, match="the key must be good"):
        label_on_cluster(THREE, job)
    assert not job.output.exists()


def test_failures_are_tried_again_and_their_cost_counts_once(make_job):
    job = make_job(["nodule 1", "fail"])
    for times in (1, 2):
        summary = label_on_cluster(THREE, job)
        assert summary.num_failed == {"http_500": 1}
        assert (summary.cost_usd, summary.tokens_in) == (0.25 + 0.5 * times, 8 + 3 * times)
    assert asked(job) == {"nodule 1": 1, "fail": 2}


def test_a_part_is_taken_over_once_even_if_a_kill_left_it_full(make_job):
    job = make_job(TEXTS)
    job.plan(1)
    job.label_part(0)
    part = part_output(job.output, 0)
    file = part.with_name(part.name + ".ledger") / "ledger.sqlite"
    content = file.read_bytes()
    job.finish()
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert job.finish().cost_usd == 2.25


def test_a_task_that_comes_late_does_nothing(make_job):
    job = make_job(TEXTS)
    job.plan(2)
    job.label_part(0)
    with open_ledger(job.output):
        assert part_output(job.output, 1) is None
    before = asked(job)
    assert job.label_part(1) == 0
    assert asked(job) == before


def test_a_table_that_tasks_are_at_work_on_is_refused(make_job):
    job = make_job(TEXTS)
    job.plan(2)
    with (
        open_ledger(part_output(job.output, 1)),
        pytest.raises(BlockingIOError, match=r"got another at work on .*00001\.parquet\.ledger"),
    ):
        label_on_cluster(THREE, job)
    assert label_on_cluster(THREE, job).num_labeled == 9


def test_a_task_with_another_model_is_refused(make_job):
    make_job(TEXTS).plan(1)
    with pytest.raises(ValueError, match="must label as planned, got other settings: model_id: m -> other"):
        make_job(TEXTS, model_id="other").label_part(0)


def test_refuses_slurm_where_there_is_none(make_job, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    job = make_job(TEXTS)
    with pytest.raises(FileNotFoundError, match="must find the command sbatch, got none"):
        label_on_cluster(ClusterPlan(executor="slurm", partition="cpu"), job)
    assert not job.output.parent.exists()
