"""``radtower label``: silver labels, from the command line."""

import json
import re

import pandas as pd
import pytest

from radtower.labeling.answers.ledger import open_ledger
from radtower.labeling.label_table import read_labels

COLUMNS = ("--id-column", "no", "--text-column", "text")


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("no,text\n1,There is no nodule\n2,\n3,effusion\n4,There is  no nodule\n")
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "labels.parquet"


def test_an_encoder_labels_a_table_and_an_empty_report_is_listed(radtower, labeler, table, output):
    done = radtower("label", table, "-o", output, "--model", labeler, *COLUMNS)
    assert done.code == 1
    assert "4 reports, 3 unique, 1 duplicates; 2 to ask, 1 done before or empty" in done.out
    assert "2 of 3 unique reports labeled in" in done.out
    assert re.search(r"^Generation [0-9a-f]{12}$", done.out, re.MULTILINE)
    assert "Failed, empty_report: 1" in done.out
    assert re.search(r"Tokens in \d+, out 0; cost 0\.0000 USD; dropped quotes 0", done.out)
    assert "failed: 2: empty_report" in done.err
    written = read_labels(output)
    assert written.keys == ("lung_nodule", "pleural_effusion")
    assert written.frame["report_id"].tolist() == ["1", "2", "3"]
    assert set(written.frame["labeler"]) == {"encoder"}
    assert "There is no nodule" not in done.out + done.err


def test_a_second_run_goes_on_and_json_tells_the_same(radtower, labeler, table, output):
    radtower("label", table, "-o", output, "--model", labeler, *COLUMNS)
    first = output.read_bytes()
    table.write_text(table.read_text() + "5,small effusion\n")
    done = radtower("label", table, "-o", output, "--model", labeler, *COLUMNS, "--json", "--retry-failed")
    assert done.code == 1
    summary = json.loads(done.out)
    assert summary["plan"] | {"generation": None} == {
        "generation": None,
        "changes": [],
        "num_reports": 5,
        "num_unique": 4,
        "num_to_ask": 1,
        "spent_usd": 0.0,
        "num_in_batches": 0,
    }
    assert (summary["num_labeled"], summary["num_failed"]) == (3, {"empty_report": 1})
    assert summary["first_failures"] == {"2": "empty_report"}
    assert summary["cost_usd"] == 0.0
    assert output.read_bytes() != first


def test_a_changed_findings_set_is_a_new_generation_and_said_so(radtower, labeler, table, output, tmp_path):
    radtower("label", table, "-o", output, "--model", labeler, *COLUMNS)
    own = tmp_path / "own.yaml"
    one = "- {key: %s, name: %s, definition: Water., prompts: [x]}\n"
    own.write_text(
        "name: own\nfindings:\n" + one % ("lung_nodule", "Nodule") + one % ("pleural_effusion", "E")
    )
    done = radtower("label", table, "-o", output, "--model", labeler, *COLUMNS, "--findings", own)
    assert re.search(r"A new generation, [0-9a-f]{12}: answers of the last run do not count", done.out)
    assert re.search(
        r"^  findings: ct_rate_18\[.*\] [0-9a-f]{12} -> own [0-9a-f]{12}$", done.out, re.MULTILINE
    )
    assert "2 to ask" in done.out
    assert set(read_labels(output).frame["findings_set"]) == {"own"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--output": "labels.csv"}, "output must be a file that ends in .parquet, got 'labels.csv'"),
        ({"--text-column": "note"}, "got no ['note'] among 2 columns"),
        ({"--findings": "ct_rate_99"}, "got 'ct_rate_99'"),
        ({"--device": "foo"}, "device must be one that torch has here, got 'foo'"),
        ({"--device": "cuda:99"}, "device must be one that torch has here, got 'cuda:99'"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_is_loaded(
    radtower, table, tmp_path, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    options = {
        "--output": "labels.parquet",
        "--model": "no_such_model",
        "--id-column": "no",
        "--text-column": "text",
    } | change
    done = radtower("label", table, *(part for option in options.items() for part in option))
    assert done.code == 2
    assert message in done.err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("labels")] == []


def test_a_repeated_id_is_refused_before_the_model_is_loaded(radtower, table, output):
    table.write_text("no,text\n1,a\n1,b\n")
    done = radtower("label", table, "-o", output, "--model", "no_such_model", *COLUMNS)
    assert done.code == 2
    assert "a second time at position 1" in done.err


def test_an_endpoint_needs_its_address(radtower, manifest, output):
    done = radtower("label", manifest, "-o", output, "--model", "m", "--backend", "endpoint")
    assert done.code == 2
    assert "--base-url must be given for an endpoint, got none" in done.err
    assert not output.exists()


def test_an_endpoint_that_is_not_there_is_an_error_and_nothing_is_written(radtower, manifest, output):
    address = ("--backend", "endpoint", "--base-url", "http://127.0.0.1:1/v1")
    done = radtower("label", manifest, "-o", output, "--model", "m", *address)
    assert done.code == 2
    assert not output.exists()


def test_a_table_that_another_process_writes_is_refused(radtower, labeler, table, output):
    with open_ledger(output):
        done = radtower("label", table, "-o", output, "--model", labeler, *COLUMNS)
    assert done.code == 2
    assert "got another at work on" in done.err


def test_a_findings_set_that_lacks_the_labelers_findings_is_refused(
    radtower, labeler, manifest, tmp_path, output
):
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nfindings:\n- {key: mass, name: Mass, definition: A mass., prompts: [mass]}\n")
    done = radtower("label", manifest, "-o", output, "--model", labeler, "--findings", own)
    assert done.code == 2
    assert "got ['lung_nodule', 'pleural_effusion']" in done.err


def test_the_encoder_has_flags_and_says_which_reports_are_long(radtower, labeler, table, output):
    table.write_text("no,text\n1,There is no nodule. There is a small effusion. Describe it\n")
    flags = ("--max-length", "12", "--threshold", "0.999", "--batch-size", "1", "--device", "cpu")
    done = radtower("label", table, "-o", output, "--model", labeler, *COLUMNS, *flags, "--skip-unmatched")
    assert done.code == 0, done.err
    assert "1 reports have more than the 12 tokens of a window: read in several, none cut off." in done.out
    other = output.with_name("other.parquet")
    documented = radtower("label", table, "-o", other, "--model", labeler, *COLUMNS, *flags, "--json")
    (note,) = json.loads(documented.out)["notes"]
    assert note in done.out
    assert set(read_labels(output).status_frame.iloc[0]) == {"absent"}
    again = radtower("label", table, "-o", output, "--model", labeler, *COLUMNS, "--dtype", "bfloat16")
    assert "dtype: float32 -> bfloat16" in again.out
    assert "threshold: 0.999 -> 0.5" in again.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--threshold", "2"), "threshold must be between 0 and 1, got 2.0"),
        (("--batch-size", "0"), "batch_size must be 'auto' or at least 1, got 0"),
        (
            ("--max-length", "1000"),
            "max_length must be between 1 and 256, the positions of the model, got 1000",
        ),
        (("--dtype", "float16"), "dtype must be float32 or bfloat16, got 'float16'"),
    ],
)
def test_bad_flags_of_an_encoder_are_refused(radtower, labeler, table, output, flags, message):
    done = radtower("label", table, "-o", output, "--model", labeler, *COLUMNS, *flags)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert not output.exists()


def test_flags_of_an_encoder_are_refused_by_other_backends(radtower, table, output):
    flags = ("--backend", "llm", "--threshold", "0.4", "--skip-unmatched")
    done = radtower("label", table, "-o", output, "--model", "m", *COLUMNS, *flags)
    assert done.code == 2
    message = "--backend must be encoder for --threshold, --skip-unmatched, got llm"
    assert message in " ".join(done.err.split())


def test_labels_that_cannot_be_pushed_are_saved_and_wait_without_text(
    radtower, labeler, table, output, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\u00e9")  # no header can carry it: refused before any request
    done = radtower("label", table, "-o", output, "--model", labeler, *COLUMNS, "--push-to", "tester/silver")
    assert (done.code, output.is_file()) == (1, True), done.err
    assert "It waits. Send it with radtower push --pending" in done.err
    (files,) = output.with_name(f"{output.name}.pushes").glob("[0-9]*/files")
    assert (files / "README.md").is_file()
    frames = [pd.read_parquet(path) for path in files.glob("data/*.parquet")]
    assert frames
    assert not any("text" in name or "evidence" in name for frame in frames for name in frame.columns)


def test_a_push_that_could_not_follow_is_refused_before_the_labeling(radtower, labeler, table, output):
    base = ("label", table, "-o", output, "--model", labeler)
    assert "repo_id must be OWNER/NAME, got 'silver'" in radtower(*base, "--push-to", "silver").err
    done = radtower(*base, "--push-to", "tester/silver", "--executor", "local")
    assert "--push-to must not come with --executor. Use push-labels afterwards." in done.err
    assert not output.exists()
