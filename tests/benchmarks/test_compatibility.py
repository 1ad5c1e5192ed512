"""An environment that was used cannot show what loads without pillow; the table says what went wrong."""

import importlib.util
import sys
from pathlib import Path

import pytest

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
    assert lines[2].startswith("| MedCLIPModel | AutoModel | 5.23.0 | and pillow | online |")
    assert lines[2].endswith("| ledoMotuA |")
    assert lines[0].count("|") == lines[1].count("|") == lines[3].count("|")


def test_a_cell_is_the_largest_difference_in_units_of_the_largest_number_or_the_error(compatibility):
    expected = {("vision", "AutoModel"): [10.0, -20.0]}
    result = {"model": "vision", "auto": "AutoModel", "options": {"dtype": "float32"}}
    judged = compatibility.judged
    assert judged(result | {"numbers": [10.0, -20.0002]}, expected) == "1e-05"
    assert judged(result | {"numbers": [10.0, -20.2]}, expected) == "no: differs by 1.0e-02"
    assert judged(result | {"numbers": [10.0]}, expected) == "no: 1 numbers in place of 2"
    assert judged(result | {"error": "ValueError: sdpa"}, expected) == "no: ValueError: sdpa"
    rounded = result | {"numbers": [10.0, -20.2], "options": {"dtype": "bfloat16"}}
    assert judged(rounded, expected) == "1e-02"
