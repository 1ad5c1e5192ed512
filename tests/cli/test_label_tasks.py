"""``radtower label --executor``: the same table, from tasks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from radtower.labeling.label_table import read_labels


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("study_id,report\n1,There is no nodule\n2,\n3,effusion\n4,There is  no nodule\n5,small\n")
    return path


def assert_equal_to_a_single_run(radtower, labeler, table, output):
    one = output.with_name("one.parquet")
    radtower("label", table, "-o", one, "--model", labeler)
    expected, got = read_labels(one), read_labels(output)
    assert expected.frame.drop(columns="score").equals(got.frame.drop(columns="score"))
    assert got.frame["report_id"].tolist() == ["1", "2", "3", "5"]
    assert abs(expected.score_matrix() - got.score_matrix())[[0, 2, 3]].max() < 1e-5


def test_local_tasks_write_the_table_of_a_single_run(radtower, labeler, table, tmp_path):
    output = tmp_path / "labels.parquet"
    done = radtower("label", table, "-o", output, "--model", labeler, "--executor", "local", "--tasks", 2)
    assert done.code == 1
    assert "3 of 4 unique reports labeled in" in done.out
    assert "failed: 2: empty_report" in done.err
    assert "5 reports, 4 unique, 1 duplicates; 3 to ask, 1 done before or empty\n" in done.out
    assert "A new generation" not in done.out
    assert_equal_to_a_single_run(radtower, labeler, table, output)


def test_what_tasks_say_about_their_reports_is_printed_together(radtower, labeler, tmp_path):
    table = tmp_path / "reports.csv"
    long = "There is no nodule. There is a small effusion. Describe it"
    table.write_text("study_id,report\n" + "".join(f"{row},{long} {'small ' * row}\n" for row in range(6)))
    flags = ("--model", labeler, "--max-length", 12, "--device", "cpu")
    one = radtower("label", table, "-o", tmp_path / "one.parquet", *flags).out
    where = ("--executor", "local", "--tasks", 3)
    tasks = radtower("label", table, "-o", tmp_path / "tasks.parquet", *flags, *where).out
    assert "6 reports have more than the 12 tokens of a window: read in several, none cut off.\n" in one
    said = [line for line in one.splitlines() if "of a window" in line]
    assert [line for line in tasks.splitlines() if "of a window" in line] == said
    # They are of this run: nothing was read in the second one.
    again = radtower("label", table, "-o", tmp_path / "tasks.parquet", *flags, *where, "--json")
    assert json.loads(again.out)["notes"] == []


@pytest.mark.slow
def test_slurm_is_given_scripts_that_do_the_work(radtower, labeler, table, tmp_path, slurm):
    output = tmp_path / "labels.parquet"
    where = ("--executor", "slurm", "--tasks", 2, "--partition", "cpu", "--time", "1:00:00", "--memory-gb", 9)
    done = radtower("label", table, "-o", output, "--model", labeler, *where)
    assert done.code == 0, done.err
    logs = tmp_path / "labels.parquet.ledger" / "logs"
    names = ("plan", "label", "finish")
    scripts = {name: (logs / name / "launch_script.slurm").read_text() for name in names}
    for line in ("array=0-1", "partition=cpu", "time=1:00:00", "mem-per-cpu=9G", "job-name=radtower-label"):
        assert f"#SBATCH --{line}\n" in scripts["label"]
    assert "#SBATCH --array=0-0\n" in scripts["plan"]
    submitted = {path.read_text(): path.name.removeprefix("job") for path in slurm.glob("job*[0-9]")}
    jobs = {name: submitted[script] for name, script in scripts.items()}
    assert f"last_job: {jobs['finish']}" in done.out
    for before, after, when in (("plan", "label", "afterok"), ("label", "finish", "afterany")):
        assert f"--dependency={when}:{jobs[before]}" in (slurm / f"job{jobs[after]}.args").read_text()
    for name, rank in (("plan", "0"), ("label", "1"), ("label", "0"), ("finish", "0")):
        command = Path(sys.executable).parent / "launch_pickled_pipeline"
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": rank, "SLURM_NODELIST": "host"}
        ran = subprocess.run([command, logs / name / "executor.pik"], env=environment, capture_output=True)
        assert ran.returncode == 0, ran.stderr.decode()[-2000:]
    assert_equal_to_a_single_run(radtower, labeler, table, output)


def test_what_one_process_must_do_is_refused_in_tasks(radtower, table, tmp_path):
    endpoint = ("--backend", "endpoint", "--base-url", "http://127.0.0.1:1/v1", "--model", "m", "--dry-run")
    done = radtower("label", table, "-o", tmp_path / "l.parquet", *endpoint, "--executor", "local")
    assert done.code == 2
    assert "--executor must not come with --dry-run. Label in one process." in done.err


def test_what_changed_is_said_before_tasks_label_again(radtower, labeler, table, tmp_path):
    arguments = ("label", table, "-o", tmp_path / "l.parquet", "--model", labeler, "--executor", "local")
    radtower(*arguments)
    changed = radtower(*arguments, "--threshold", 0.25)
    assert "A new generation, " in changed.out
    assert "  settings.threshold: 0.5 -> 0.25\n" in changed.out
    quiet = radtower(*arguments, "--threshold", 0.75, "--json")
    assert json.loads(quiet.out)["plan"]["num_to_ask"] == 3


def test_flags_of_tasks_are_refused_without_an_executor(radtower, table, tmp_path):
    flags = ("--tasks", 8, "--partition", "gpu", "--memory-gb", 6)
    done = radtower("label", table, "-o", tmp_path / "l.parquet", "--model", tmp_path, *flags)
    assert done.code == 2
    assert "--executor must be given for --tasks, --partition, --memory-gb, got none." in done.err
    assert not (tmp_path / "l.parquet.ledger").exists()
