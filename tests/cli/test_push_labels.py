"""``radtower push-labels`` as installed, against a Hub on 127.0.0.1, in processes of their own."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pandas as pd
import pyarrow.parquet as pq
import pytest

from radtower.data import publish
from radtower.labeling.label_table import LabelRow, stream_labels, write_labels
from radtower.processing.report_text import report_sha256

COMMAND = "import sys; sys.argv[0] = 'radtower'; from radtower_command import main; main()"
LOAD = """
import datasets, huggingface_hub, json, sys
whole = datasets.load_dataset("tester/silver")
huggingface_hub.DatasetCard.load("tester/silver").validate()
streamed = datasets.load_dataset("tester/silver", streaming=True)
print(json.dumps([{split: list(rows) for split, rows in loaded.items()} for loaded in (whole, streamed)]))
"""
KEYS = ("lung_nodule", "pleural_effusion")
# study -> text, statuses; the sentences are what must not leave.
REPORTS = {
    "s1": ("A tiny spiculated thing up there.", ("present", "absent")),
    "s2": ("Dr. Miller called on 2021-03-12.", ("not_mentioned", "uncertain")),
}


@pytest.fixture
def labels(tmp_path):
    rows = [
        LabelRow(
            report_id=name,
            report_sha256=report_sha256(text),
            status=dict(zip(KEYS, statuses, strict=True)),
            score=dict(zip(KEYS, (0.75, None), strict=True)),
            evidence=dict(zip(KEYS, (text, None), strict=True)),
            labeler="endpoint",
            model_id="some/model",
            prompt_version="v1",
            findings_set="ct_rate_18[lung_nodule,pleural_effusion]",
        )
        for name, (text, statuses) in REPORTS.items()
    ]
    write_labels(rows, tmp_path / "labels.parquet")
    return tmp_path / "labels.parquet"


@pytest.fixture
def manifest(tmp_path):
    frame = pd.DataFrame(
        {
            "volume_id": ["v1", "v2", "v3"],
            "study_id": ["s1", "s1", "s2"],
            "patient_id": ["secret-patient-1", "secret-patient-1", "secret-patient-2"],
            "split": ["train", "train", "validation"],
            "report": [REPORTS["s1"][0], REPORTS["s1"][0], REPORTS["s2"][0]],
        }
    )
    frame.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path / "manifest.csv"


def _run(local_hub, tmp_path, code, *arguments, token="hf_local_test_token"):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=local_hub.environment(tmp_path / "home", token) | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def test_pushes_labels_without_a_word_of_the_reports_and_they_load_again(
    local_hub, tmp_path, labels, manifest
):
    out = tmp_path / "out"
    arguments = ["push-labels", labels, "tester/silver", "--reports", manifest, "-o", out, "--json"]
    done = _run(local_hub, tmp_path, COMMAND, *arguments)
    assert done.returncode == 0, done.stderr
    repo = local_hub.repo("datasets", "tester/silver")
    assert json.loads(done.stdout) == {
        "repo_id": "tester/silver",
        "splits": {"train": 2, "validation": 1},
        "joined_by": "report",
        "num_without_labels": 0,
        "num_unused_labels": 0,
        "has_text": False,
        "url": f"{local_hub.url}/datasets/tester/silver",
        "commit": repo.commits[1].oid,
        "is_private": True,
        "num_changed": 4,
        "num_deleted": 0,
        "pull_request_url": None,
    }
    assert len(repo.commits) == 2
    assert repo.is_private
    assert set(repo.files) == {
        *(".gitattributes", "README.md", "assets/class_balance.png"),
        *("data/train.parquet", "data/validation.parquet"),
    }
    sent = local_hub.everything_sent()
    tables = [pq.read_table(path).to_pylist() for path in sorted((out / "data").glob("*.parquet"))]
    for secret in ("tiny spiculated thing", "Miller", "2021-03-12", "secret-patient"):
        assert secret.encode() not in sent
        assert secret not in str(tables) + done.stdout + done.stderr
    assert b"hf_local_test_token" not in sent
    loaded = _run(local_hub, tmp_path, LOAD)
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout.splitlines()[-1]) == [{"train": tables[0], "validation": tables[1]}] * 2
    *_, asked = local_hub.of("POST", "/api/validate-yaml")  # the client itself asks before a commit
    assert asked.json == {"repoType": "dataset", "content": repo.files["README.md"].decode()}
    refused = _run(local_hub, tmp_path / "elsewhere", LOAD, token=None)
    assert "DatasetNotFoundError: Dataset 'tester/silver' doesn't exist on the Hub" in refused.stderr
    assert tables[1] == [
        {
            "VolumeName": "v3",
            "Lung nodule": 0,
            "Pleural effusion": None,
            "lung_nodule_status": "not_mentioned",
            "lung_nodule_score": 0.75,
            "pleural_effusion_status": "uncertain",
            "pleural_effusion_score": None,
        }
    ]


def test_a_refused_token_is_one_line_and_exit_code_2(local_hub, tmp_path, labels):
    done = _run(local_hub, tmp_path, COMMAND, "push-labels", labels, "tester/silver", token="hf_wrong")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: the token must be allowed to write to tester/silver, got HTTP 401" in done.stderr
    assert "hf_wrong" not in done.stderr
    assert "Traceback" not in done.stderr
    assert local_hub.repos == {}


def test_without_a_token_nothing_is_even_read(radtower, monkeypatch, tmp_path):
    monkeypatch.setattr(publish, "get_token", lambda: None)
    done = radtower("push-labels", tmp_path / "nowhere.parquet", "me/silver")
    assert done.code == 2
    assert "error: a token of the Hub must be set, got none" in done.err


def test_a_dry_run_writes_the_folder_and_pushes_nothing(radtower, tmp_path, labels, manifest):
    out = tmp_path / "out"
    done = radtower("push-labels", labels, "me/silver", "--reports", manifest, "-o", out, "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "Rows: 2 train, 1 validation; found by report\n"
        "Ids are published as they are; reports and quotes are not\nNothing was pushed\n"
    )
    assert "null where it is masked" in (out / "README.md").read_text()
    alone = radtower("push-labels", labels, "me/silver", "--dry-run", "--json")
    assert json.loads(alone.out)["splits"] == {"train": 2}
    assert json.loads(alone.out)["url"] is None


def test_flags_reach_the_card_and_the_targets(radtower, tmp_path, labels, manifest):
    out = tmp_path / "out"
    flags = [
        "--license",
        "cc-by-4.0",
        "--license-of-source",
        "mine to give",
        "--phantom",
        "--uncertain",
        "0.25",
    ]
    flags += [
        "--mask-not-mentioned",
        "--language",
        "tr",
        "--findings",
        "ct_rate_18",
        "--id-column",
        "study_id",
    ]
    frame = pd.read_csv(manifest).drop_duplicates("study_id").rename(columns={"report": "text"})
    frame.to_csv(manifest, index=False)
    flags += ["--reports", manifest, "--text-column", "text", "-o", out, "--dry-run"]
    assert radtower("push-labels", labels, "me/silver", *flags).code == 0
    card = (out / "README.md").read_text()
    for stated in ("license: cc-by-4.0", "- tr\n", "Reports: mine to give.", "phantoms, not patients"):
        assert stated in card
    row = pq.read_table(out / "data" / "validation.parquet").to_pylist()[0]
    assert (row["VolumeName"], row["Lung nodule"], row["Pleural effusion"]) == ("s2", None, 0.25)


def test_agreement_in_the_card_is_what_evaluate_measured(radtower, tmp_path, labels):
    gold = pd.DataFrame({"study_id": ["s1", "s2"], "lung_nodule": [1, 0], "pleural_effusion": [0, 1]})
    gold.to_csv(tmp_path / "gold.csv", index=False)
    results, out = tmp_path / "results.json", tmp_path / "out"
    flags = ["--label-source", "one reader", "--resamples", 20]
    assert radtower("evaluate", "labels", labels, tmp_path / "gold.csv", "-o", results, *flags).code == 0
    arguments = ["push-labels", labels, "me/silver", "--dry-run", "-o", out, "--results", results]
    assert radtower(*arguments).code == 0
    precision = next(
        item
        for item in json.loads(results.read_text())["metrics"]
        if (item["metric"], item.get("finding")) == ("precision", "lung_nodule")
    )
    card = (out / "README.md").read_text()
    assert "class set: 2 of 18 findings of ct_rate_18; label source: one reader" in card
    assert f"{precision['value']:.3f} ({precision['ci_low']:.3f} to {precision['ci_high']:.3f})" in card
    results.write_text(results.read_text().replace("some/model", "other/model"))
    done = radtower(*arguments)
    assert done.code == 2
    assert "of the labeler of these labels, 'some/model', got those of 'other/model'" in done.err


def test_results_of_another_prompt_are_refused(radtower, tmp_path, labels):
    gold = pd.DataFrame({"study_id": ["s1", "s2"], "lung_nodule": [1, 0], "pleural_effusion": [0, 1]})
    gold.to_csv(tmp_path / "gold.csv", index=False)
    rows = [LabelRow(**row | {"evidence": dict.fromkeys(KEYS)}) for row in pq.read_table(labels).to_pylist()]
    stream_labels(rows, labels, KEYS, {"model_id": "/a/model", "settings.prompt": "0a"})
    results = tmp_path / "results.json"
    flags = ["-o", results, "--resamples", 20]
    assert radtower("evaluate", "labels", labels, tmp_path / "gold.csv", *flags).code == 0
    arguments = ["push-labels", labels, "me/silver", "--dry-run", "--results", results]
    # The folder of the model is another on the next machine.
    stream_labels(rows, labels, KEYS, {"model_id": "/b/model", "settings.prompt": "0a"})
    assert radtower(*arguments).code == 0
    stream_labels(rows, labels, KEYS, {"model_id": "/a/model", "settings.prompt": "0b"})
    done = radtower(*arguments)
    assert (done.code, "results must be of the generation of these labels" in done.err) == (2, True)


def test_text_needs_a_license_and_passes_the_privacy_check_first(radtower, tmp_path, labels, manifest):
    out = tmp_path / "out"
    arguments = ["push-labels", labels, "me/silver", "--reports", manifest, "-o", out, "--dry-run"]
    arguments.append("--include-text")
    done = radtower(*arguments)
    assert (done.code, "license_id must be given where texts are published" in done.err) == (2, True)
    arguments += ["--license", "cc-by-4.0"]
    done = radtower(*arguments)
    assert done.code == 2
    assert "found: v3: date, name\n" in done.err
    assert "got 2 in 1 of 2 texts (1 date, 1 name)" in done.err
    assert "Miller" not in done.err + done.out
    assert not out.exists()
    done = radtower(*arguments, "--accept-phi", 2)
    assert done.code == 0
    assert "reports and quotes are too" in done.out
    assert not (out / "privacy.json").exists()
    done = radtower(*arguments, "--allow-phi-findings", "Both are invented.")
    assert done.code == 0
    record = {"allowed_because": "Both are invented.", "counts": {"date": 1, "name": 1}}
    assert json.loads((out / "privacy.json").read_text()) == record
    assert pq.read_table(out / "data" / "validation.parquet").to_pylist()[0]["report"] == REPORTS["s2"][0]


@pytest.mark.skipif(find_spec("presidio_analyzer") is not None, reason="the extra privacy is installed")
def test_presidio_must_be_installed_to_search(radtower, labels):
    done = radtower("push-labels", labels, "me/silver", "--dry-run", "--presidio")
    assert done.code == 2
    assert "this command needs presidio_analyzer from the extra 'privacy'" in done.err


def test_the_card_of_labels_is_searched_too(radtower, tmp_path, labels, manifest):
    arguments = [
        "push-labels",
        labels,
        "me/silver",
        "--reports",
        manifest,
        "--dry-run",
        "-o",
        tmp_path / "out",
    ]
    done = radtower(*arguments, "--license-of-source", "Ask Dr. Miller.")
    assert done.code == 2
    assert "nothing that may identify a patient, got 1 name: README.md (name). Remove" in done.err
    assert "Miller" not in done.err
    done = radtower(
        *arguments, "--license-of-source", "Ask Dr. Miller.", "--allow-phi-findings", "An author."
    )
    assert done.code == 0


def test_ids_like_record_numbers_must_be_kept_on_purpose(radtower, tmp_path, labels, manifest):
    frame = pd.read_csv(manifest).assign(volume_id=["8812340", "8812341", "8812342"])
    frame.to_csv(manifest, index=False)
    arguments = ["push-labels", labels, "me/silver", "--reports", manifest, "--dry-run"]
    done = radtower(*arguments)
    assert done.code == 2
    assert "found: 8812340: record number\n" in done.err
    assert "ids must not look like identifiers of patients, got 3 of 3 that do" in done.err
    assert radtower(*arguments, "--keep-ids").code == 0


def test_rows_that_stay_behind_are_counted(radtower, labels, manifest):
    frame = pd.read_csv(manifest)
    frame.loc[2, "report"] = "Never labeled."
    frame.to_csv(manifest, index=False)
    done = radtower("push-labels", labels, "me/silver", "--reports", manifest, "--dry-run")
    assert "Left out: 1 rows without labels, 1 labeled reports that no row has\n" in done.out
