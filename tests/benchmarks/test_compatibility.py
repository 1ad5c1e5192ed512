"""An environment that was used cannot show what loads without pillow; the table says what went wrong."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def compatibility():
    sys.path.insert(0, str(FOLDER))  # it imports the script that it runs elsewhere
    spec = importlib.util.spec_from_file_location("compatibility", FOLDER / "compatibility.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))
    del sys.modules["compatibility_probe"]


@pytest.mark.parametrize("has_pillow", [True, False])
def test_an_environment_that_is_there_must_not_have_pillow(compatibility, tmp_path, has_pillow):
    python = tmp_path / "transformers-5.23.0" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexit {0 if has_pillow else 1}\n")  # of `python -c "import PIL"`
    python.chmod(0o755)
    if has_pillow:
        with pytest.raises(FileExistsError, match=r"and transformers only, got .*transformers-5\.23\.0"):
            compatibility.environment(tmp_path, "5.23.0")
    else:
        assert compatibility.environment(tmp_path, "5.23.0") == python


def test_two_auto_classes_of_one_class_have_rows_of_their_own(compatibility):
    row = {"class": "MedCLIPModel", "release": "5.23.0", "stage": "and pillow", "network": "online"}
    rows = [
        row | {"auto": auto, "way": "sdpa", "cell": auto[::-1]} for auto in ("AutoModel", "AutoModelForX")
    ]
    lines = compatibility.table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| MedCLIPModel | AutoModel | and pillow | 5.23.0 | online |")
    assert lines[2].endswith("| ledoMotuA |")
    assert lines[0].count("|") == lines[1].count("|") == lines[3].count("|")


def test_rows_with_equal_cells_are_one(compatibility):
    row = {"class": "C", "auto": "AutoModel", "stage": "and pillow", "way": "sdpa"}
    cells = {("1", "on"): "0", ("1", "off"): "0", ("2", "on"): "0", ("2", "off"): "0", ("3", "on"): "no"}
    rows = [row | {"release": r, "network": n, "cell": cell} for (r, n), cell in cells.items()]
    lines = compatibility.table(rows).splitlines()[2:]
    assert [line.split(" | ")[3:5] for line in lines] == [["1, 2", "on, off"], ["3", "on"]]


def test_versions_and_shards_are_there_to_be_told_apart(compatibility, tmp_path):
    whole = {"a": torch.ones(40_000), "n": torch.tensor(3), "b": torch.ones(30_000)}
    folder = tmp_path / "tower"
    folder.mkdir()
    save_file(whole, folder / "model.safetensors")
    smaller = load_file(compatibility.older(folder, tmp_path) / "model.safetensors")
    assert torch.equal(smaller["a"], 0.9 * whole["a"])
    assert smaller["n"] == 3
    shards = sorted(compatibility.in_shards(folder, tmp_path).glob("*"))
    assert [path.suffix for path in shards] == [".safetensors", ".safetensors", ".json"]
    assert torch.equal(load_file(folder / "model.safetensors")["a"], whole["a"])


def test_a_cell_is_the_largest_difference_in_units_of_the_largest_number_or_the_error(compatibility):
    expected = {("vision", "AutoModel", "newest"): [10.0, -20.0], ("vision", "AutoModel", "v1"): [9.0, -18.0]}
    result = {"model": "vision", "auto": "AutoModel", "options": {"dtype": "float32"}}
    judged = compatibility.judged
    assert judged(result | {"numbers": [10.0, -20.0002]}, expected) == "1e-05"
    assert judged(result | {"numbers": [10.0, -20.2]}, expected) == "no: differs by 1.0e-02"
    assert judged(result | {"numbers": [10.0]}, expected) == "no: 1 numbers in place of 2"
    assert judged(result | {"error": "ValueError: sdpa"}, expected) == "no: ValueError: sdpa"
    asked = "ValueError: Using a `device_map` requires `accelerate`. You can install it"
    assert judged(result | {"error": asked}, expected) == "needs accelerate"
    revision = result | {"options": {"dtype": "float32", "revision": "v1"}}
    assert judged(revision | {"numbers": [9.0, -18.0]}, expected) == "0e+00"
    assert judged(revision | {"numbers": [10.0, -20.0]}, expected) == "no: differs by 1.1e-01"
    rounded = result | {"numbers": [10.0, -20.2], "options": {"dtype": "bfloat16"}}
    assert judged(rounded, expected) == "1e-02"
