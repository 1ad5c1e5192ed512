"""``radtower label --backend llm``: a causal language model of this process, from the command line."""

import json
import shutil

import pytest

from radtower.cli import extras
from radtower.labeling.findings import Status
from radtower.labeling.label_table import read_labels
from radtower.labeling.local_llm import generating_labeler

FINDINGS = """name: own
findings:
- {key: nodule, name: Nodule, definition: Round., prompts: [nodule]}
- {key: effusion, name: Effusion, definition: Water., prompts: [effusion]}
"""


@pytest.fixture
def label(radtower, tmp_path, tiny_llm_folder):
    """Run the command on three reports, one of them too long for the model."""
    folder = shutil.copytree(tiny_llm_folder, tmp_path / "llm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 5000}))
    (tmp_path / "own.yaml").write_text(FINDINGS)
    table = tmp_path / "reports.csv"
    table.write_text("study_id,report\n1,There is no nodule\n2,small effusion\n3," + "no " * 6000 + "\n")
    output = tmp_path / "labels.parquet"

    def run(*flags, model=folder):
        arguments = ("-o", output, "--backend", "llm", "--model", model, "--findings", tmp_path / "own.yaml")
        return radtower("label", table, *arguments, *flags), output

    return run


def test_an_llm_scores_each_finding_and_a_long_report_is_listed(label):
    done, output = label("--calibration", "all")
    assert done.code == 1
    assert "2 of 3 unique reports labeled in" in done.out
    assert "Failed, too_long: 1" in done.out
    written = read_labels(output)
    assert written.keys == ("nodule", "effusion")
    assert set(written.frame["labeler"]) == {"llm"}
    assert set(written.frame["model_id"]) == {"llm"}
    assert set(written.frame["prompt_version"]) == {"status-words-1"}
    scores = [row["nodule"] for row in written.frame["score"][:2]]
    assert all(0 < score < 1 for score in scores)
    assert scores[0] != scores[1]


def test_precision_and_calibration_are_part_of_the_generation(label):
    label()
    done, _ = label("--dtype", "bfloat16", "--calibration", "none")
    assert "dtype: float32 -> bfloat16" in done.out
    assert "calibration: mentioned -> none" in done.out
    assert "3 to ask" in done.out


def test_an_llm_writes_json_instead(label, monkeypatch):
    monkeypatch.setattr(generating_labeler, "MAX_QUOTE_CHARACTERS", 4)
    done, output = label("--generate")
    assert done.code == 1
    written = read_labels(output).frame
    assert written["error"].fillna("").tolist() == ["", "", "too_long"]
    assert {row["effusion"] for row in written["status"][:2]} <= set(Status)
    assert written["score"][0] == {"nodule": None, "effusion": None}


def test_written_replies_that_are_cut_off_are_listed(label):
    done, output = label("--generate", "--max-tokens", 12)
    assert done.code == 2
    assert "at least one report must be labeled, got none of 3: reply:cut_off 2, too_long 1" in done.err
    assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--generate", "--calibration", "all"), "--calibration must be left out with --generate, got 'all'"),
        (("--max-tokens", "9"), "--max-tokens must be left out without --generate, got 9"),
        (("--max-tokens", "0", "--generate"), "max_new_tokens must be at least 1, got 0"),
        (("--calibration", "some"), "calibration must be one of mentioned, all, none, got 'some'"),
        (("--logprobs",), "--backend must be endpoint for --logprobs, got llm"),
        (("--batch-size", "0"), "batch_size must be at least 1, got 0"),
        (("--batch-size", "0", "--generate"), "batch_size must be at least 1, got 0"),
        (("--device", "nowhere"), "device must be one that torch has here, got 'nowhere'"),
        (("--threshold", "0.4"), "--backend must be encoder for --threshold, got llm"),
        (("--dtype", "int4"), "dtype must be a floating-point type of torch or 'auto', got 'int4'"),
    ],
)
def test_bad_flags_are_refused(label, flags, message):
    done, output = label(*flags)
    assert done.code == 2
    assert message in done.err
    assert not output.exists()


@pytest.mark.parametrize("flags", [("--generate",), ()])
def test_what_needs_the_extra_says_so(label, flags, monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "local-llm", ("no_such_module",))
    done, _ = label(*flags, model="llm.gguf")
    assert done.code == 2
    assert "needs no_such_module from the extra 'local-llm'" in done.err


def test_flags_of_an_llm_are_refused_by_other_backends(radtower, tmp_path):
    flags = ("--generate", "--calibration", "all")
    done = radtower("label", "r.csv", "-o", tmp_path / "labels.parquet", "--model", "m", *flags)
    assert done.code == 2
    assert "--backend must be llm for --generate, --calibration, got encoder" in done.err
