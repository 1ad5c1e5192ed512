"""A labeling process that is killed, for real: this file is the test and the program that the test kills."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from radtower.labeling.answers.ledger import open_ledger
from radtower.labeling.findings import Status, load_findings
from radtower.labeling.label_table import read_labels
from radtower.labeling.labeler import label_reports
from radtower.labeling.report_labels import ReportLabels

FINDINGS = load_findings("ct_rate_18").subset(["pleural_effusion", "emphysema"])
# Every fifth report is a copy of the one before.
REPORTS = [(f"r{row}", f"Emphysema number {row - (row % 5 == 4)}.") for row in range(50)]
UNIQUE = sorted({text for _, text in REPORTS})
IN_FLIGHT = 3


class LoggingBackend:
    """Writes down what it is asked before it answers; holds three reports, and answers the last first."""

    name = "logging"
    model_id = "1"
    prompt_version = None
    settings = {}

    def __init__(self, log: Path, pause_s: float = 0.0) -> None:
        self.log = log
        self.pause_s = pause_s

    def label(self, reports: Iterable[str]) -> Iterator[tuple[int, ReportLabels]]:
        held: list[tuple[int, str]] = []
        for position, report in enumerate(reports):
            with self.log.open("a", encoding="utf-8") as log:
                log.write(report + "\n")
            held.append((position, report))
            if len(held) == IN_FLIGHT:
                yield self._answer(*held.pop())
        yield from (self._answer(*item) for item in reversed(held))

    def _answer(self, position: int, report: str) -> tuple[int, ReportLabels]:
        time.sleep(self.pause_s)
        status = Status.PRESENT if "7" in report else Status.ABSENT
        labels = ReportLabels(
            status=dict.fromkeys(FINDINGS.keys, status),
            score=dict.fromkeys(FINDINGS.keys, 1 / len(report)),
            evidence=dict.fromkeys(FINDINGS.keys, "Emphysema"),
            tokens_in=len(report),
        )
        return position, labels


def wait_for_lines(log: Path, number: int) -> None:
    deadline = time.monotonic() + 60
    while not log.exists() or len(log.read_text().splitlines()) < number:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@contextmanager
def killed_at_the_end(folder: Path, *moment: str) -> Iterator[None]:
    environment = os.environ | {"RADTOWER_DEFER_MODELS": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, __file__, str(folder), *moment], env=environment) as process:
        try:
            yield
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_without_asking_twice_or_missing_one(tmp_path):
    log, output = tmp_path / "asked.log", tmp_path / "labels.parquet"
    num_asked = 0
    for number in (1, 13):
        with killed_at_the_end(tmp_path):
            wait_for_lines(log, num_asked + number)
            with pytest.raises(BlockingIOError, match="got another at work"), open_ledger(output):
                pass
        num_asked = len(log.read_text().splitlines())
        assert num_asked < len(UNIQUE)
        assert not output.exists()
    backend = LoggingBackend(log)
    summary = label_reports(REPORTS, backend, FINDINGS, output)
    assert summary.num_labeled == len(UNIQUE) == 40
    assert 40 - summary.plan.num_to_ask >= num_asked - 2 * IN_FLIGHT
    counts = Counter(log.read_text().splitlines())
    assert sorted(counts) == UNIQUE
    assert sum(counts.values()) - 40 <= 2 * IN_FLIGHT
    label_reports(REPORTS, LoggingBackend(tmp_path / "other.log"), FINDINGS, tmp_path / "other.parquet")
    assert read_labels(output).frame.equals(read_labels(tmp_path / "other.parquet").frame)
    assert sum(Counter((tmp_path / "other.log").read_text().splitlines()).values()) == 40


@pytest.mark.parametrize("moment", ["counting", "writing"])
def test_a_kill_while_it_counts_or_writes_costs_nothing(tmp_path, moment):
    log, output, marker = tmp_path / "asked.log", tmp_path / "labels.parquet", tmp_path / moment
    label_reports(REPORTS[:4], LoggingBackend(log), FINDINGS, output)
    before = output.read_bytes()
    with killed_at_the_end(tmp_path, moment):
        wait_for_lines(marker, 1)
    assert output.read_bytes() == before
    label_reports(REPORTS, LoggingBackend(log), FINDINGS, output)
    assert sorted(log.read_text().splitlines()) == UNIQUE
    assert len(read_labels(output)) == 40
    assert {path.name for path in tmp_path.iterdir()} == {
        log.name,
        output.name,
        f"{output.name}.ledger",
        moment,
    }


def stop_here(marker: Path) -> None:
    marker.write_text("here\n")
    time.sleep(60)


class SlowTable:
    """The reports, whose first reading stops before the last."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __iter__(self) -> Iterator[tuple[str, str]]:
        yield from REPORTS[:-1]
        stop_here(self.marker)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    moment = sys.argv[2] if len(sys.argv) > 2 else None
    if moment == "writing":
        pq.ParquetWriter.add_key_value_metadata = lambda *_: stop_here(folder / "writing")
    label_reports(
        SlowTable(folder / "counting") if moment == "counting" else REPORTS,
        LoggingBackend(folder / "asked.log", pause_s=0.0 if moment else 0.05),
        FINDINGS,
        folder / "labels.parquet",
    )
