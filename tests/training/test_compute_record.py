"""What a run was computed on is in its record, and counted over all its resumptions."""

import platform
from dataclasses import replace

import pytest
import yaml

from radtower.training.compute_record import ComputeClock
from radtower.training.train_vision import train_vision


@pytest.fixture
def run(vision_run):
    return replace(vision_run, data_name="Phantoms", data_license="CC0-1.0")


def _record(folder):
    return yaml.safe_load((folder / "run.yaml").read_text())


def test_the_hours_of_a_resumed_run_are_those_of_all_its_parts(run, make_arguments):
    saving = {"save_strategy": "steps", "save_steps": 1}
    folder = train_vision(run, make_arguments(max_steps=1, **saving))
    record = _record(folder)
    assert record["compute"].keys() == {"device", "num_processes", "hours"}
    assert record["compute"]["device"] == f"cpu, {platform.machine()}"
    assert record["compute"]["num_processes"] == 1
    assert 0 <= record["compute"]["hours"] < 0.1
    assert record["num_train_samples"] == 5
    assert (record["run"]["data_name"], record["run"]["data_license"]) == ("Phantoms", "CC0-1.0")
    path = folder / "checkpoint-1" / "run.yaml"
    path.write_text(yaml.safe_dump(_record(path.parent) | {"compute": {"hours": 7.5}}))
    renamed = replace(run, data_name="Phantoms, second edition")  # another word for it is no other run
    train_vision(renamed, make_arguments(max_steps=2, resume_from_checkpoint=True, **saving))
    assert 7.5 <= _record(folder)["compute"]["hours"] < 7.6
    assert _record(folder)["run"]["data_name"] == "Phantoms, second edition"


def test_hours_that_are_not_known_are_not_invented(make_arguments, tmp_path):
    clock, arguments = ComputeClock(), make_arguments()
    assert clock.record(arguments)["hours"] is None
    clock.start(str(tmp_path))  # a checkpoint of an older version, without them
    assert clock.record(arguments)["hours"] is None
    clock.start(None)
    assert clock.record(arguments)["hours"] == pytest.approx(0, abs=1e-3)
