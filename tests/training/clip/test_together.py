"""Processes of a training stop together, and divide the encoding of reports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from radtower.training.clip.feature_store import TextFeatureStore
from radtower.training.clip.stop_together import Problem, problem_of_loss, stop_together
from radtower.training.gather import divided, num_processes

sys.path.insert(0, str(Path(__file__).parent))
from together_worker import DAMAGED, STOPS, TEXTS, make_store

WORKER = Path(__file__).parent / "together_worker.py"
CPU = torch.device("cpu")


def test_the_studies_without_numbers_are_named_and_no_others():
    fine = torch.zeros(3, 2)
    images, texts = fine.clone(), fine.clone()
    images[2, 1] = float("nan")
    texts[0, 0] = float("inf")
    loss = torch.tensor(float("nan"))
    assert problem_of_loss(torch.tensor(1.5), [images, texts], None, 7) is None
    found = problem_of_loss(loss, [images, texts], ["a", "b", "c"], 7)
    assert found.is_cause
    assert "must be finite, got nan at step 7 for volumes a, c. Look at" in found.message
    found = problem_of_loss(loss, [fine, fine], ["a", "b", "c"], 7)
    assert not found.is_cause
    assert "for volumes a, b, c. Look" in found.message
    assert "for volumes that the data do not name." in problem_of_loss(loss, [images], None, 7).message


def test_one_process_says_its_own_problem():
    stop_together(None, CPU)
    with pytest.raises(FloatingPointError, match=r"^no numbers$"):
        stop_together(Problem(message="no numbers", is_cause=False), CPU)


def test_one_process_computes_all():
    assert num_processes() == 1
    found = divided([2.0, 5.0], lambda items: torch.tensor(items)[:, None], CPU)
    assert found.tolist() == [[2.0], [5.0]]


def test_processes_cannot_divide_the_work_of_a_folder(make_dual, tmp_path):
    with pytest.raises(ValueError, match=f"must be false .* got True with {tmp_path}: one process"):
        TextFeatureStore(make_dual("vit", "bert"), None, tmp_path, is_divided=True)


@pytest.mark.slow
def test_two_processes_stop_together_and_divide_their_work(run_workers, tiny_llm_folder, tmp_path):
    run_workers(WORKER, 2, tmp_path, tiny_llm_folder)
    first, second = (json.loads((tmp_path / f"messages_{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for case in STOPS:
        if case == "collapse":
            assert "must have different vectors, got cosines within 0.0e+00" in first[case]
        else:
            assert f"for volumes volume-{DAMAGED}. Look" in first[case]
    store, read = make_store(str(tiny_llm_folder), is_divided=False)
    expected = store.features(TEXTS)
    assert sum(read) == 6  # one comes twice
    found = [load_file(tmp_path / f"rank_{rank}.safetensors") for rank in range(2)]
    assert [one["read"].item() for one in found] == [3, 3]
    assert torch.equal(found[0]["features"], found[1]["features"])
    torch.testing.assert_close(found[0]["features"], expected, rtol=1e-5, atol=1e-6)
    assert [one["one"].tolist() for one in found] == [[[3.0]], [[3.0]]]


@pytest.mark.slow
def test_torchrun_ends_the_process_that_waits_for_one_that_failed():
    command = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*map(str, command), str(WORKER), "fails"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,  # that of gloo is half an hour
        check=False,
    )
    assert done.returncode != 0
    assert "the second process fails" in done.stderr
