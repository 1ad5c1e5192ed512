import json

import pandas as pd
import pytest
import yaml
from transformers import AutoModelForMaskedLM

from radtower.cli.train import parse_flags
from radtower.labeling.findings import Status
from radtower.labeling.label_table import LabelRow, write_labels
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_mntp import LLMBiEncoderForMaskedNTP
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.processing.report_text import report_sha256
from radtower.training.arguments import switches_of
from radtower.training.runs import LabelerRun


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {}),
        (["--learning_rate", "1e-4"], {"learning_rate": 0.0001}),
        (["--learning-rate", "0.5"], {"learning_rate": 0.5}),
        (["--seed", "3", "--bf16", "true"], {"seed": 3, "bf16": True}),
        (["--uncertain", "null"], {"uncertain": None}),
        (["--hidden_sizes", "[8, 16]"], {"hidden_sizes": [8, 16]}),
        (["--cache", "some/place"], {"cache": "some/place"}),
        (["--weight_decay", "-1"], {"weight_decay": -1}),
        (["--weight_decay=-1", "--llm", "a=b"], {"weight_decay": -1, "llm": "a=b"}),
        (["--max_steps", "1e1"], {"max_steps": 10}),
    ],
)
def test_flags_are_fields_and_values_are_yaml(flags, expected):
    assert parse_flags(flags) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--bf16"], {"bf16": True}),
        (["--bf16", "--seed", "3"], {"bf16": True, "seed": 3}),
        (["--seed=3", "--soft-targets"], {"seed": 3, "soft_targets": True}),
        (["--bf16", "false", "--gradient_checkpointing"], {"bf16": False, "gradient_checkpointing": True}),
        (["--tf32"], {"tf32": True}),
        (["--llm=--odd", "--bf16"], {"llm": "--odd", "bf16": True}),
    ],
)
def test_a_field_that_is_true_or_false_may_stand_alone(flags, expected):
    assert parse_flags(flags, switches_of(LabelerRun)) == expected


@pytest.mark.parametrize(
    "flags", [["--seed"], ["--learning_rate", "--bf16"], ["--bf16", "--llm"], ["--bf16", "true", "x"], ["x"]]
)
def test_no_other_field_may_stand_alone(flags):
    with pytest.raises(
        ValueError, match=r"pairs of --field .* only one that is true or false may stand alone"
    ):
        parse_flags(flags, switches_of(LabelerRun))


def test_a_switch_without_a_value_reaches_the_run(radtower, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"output_dir: {tmp_path / 'out'}\nllm: x\nreports: none.csv\n")
    done = radtower("train", "labeler", tmp_path / "recipe.yaml", "--soft-targets", "--use_cpu")
    assert done.code == 2
    assert "soft_targets must come with labels, which have scores, got True" in done.err


@pytest.mark.parametrize(
    "flags", [["--seed"], ["seed", "3"], ["--seed", "3", "extra"], ["--a", "1", "b", "2"]]
)
def test_flags_that_are_no_pairs_are_refused(flags):
    with pytest.raises(ValueError, match=r"pairs of --field and value, got \['"):
        parse_flags(flags)


def test_a_field_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match=r"name a field once, got \['pairs'\] several times"):
        parse_flags(["--pairs", "a.parquet", "--seed", "1", "--pairs=b.parquet"])


def test_a_whole_number_with_an_exponent_is_an_integer():
    assert type(parse_flags(["--max_steps", "1e1"])["max_steps"]) is int


@pytest.fixture
def recipe(radtower, manifest, processor_folder, tmp_path):
    radtower("preprocess", manifest, "-o", tmp_path / "cache", "--processor", processor_folder)
    rows = [
        LabelRow(
            report_id=report,
            report_sha256=report_sha256(report),
            status={"lung_nodule": status},
            score={"lung_nodule": None},
            evidence={"lung_nodule": None},
            labeler="test",
            model_id="m",
            prompt_version=None,
            findings_set="one",
        )
        for report, status in (("There is no nodule.", Status.ABSENT), ("nodule present", Status.PRESENT))
    ]
    write_labels(rows, tmp_path / "labels.parquet")
    content = {
        "manifest": str(manifest),
        "labels": str(tmp_path / "labels.parquet"),
        "cache": str(tmp_path / "cache"),
        "hidden_sizes": [4],
        "layers": [1],
        "output_dir": str(tmp_path / "vision"),
        "max_steps": 3,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content) + "learning_rate: 1e-3\n")
    return tmp_path / "recipe.yaml"


def test_a_recipe_becomes_a_model_folder_and_flags_override_it(radtower, recipe, tmp_path):
    flags = ("--max_steps", 1, "--hidden_sizes", "[6]", "--output_dir", tmp_path / "other")
    done = radtower("train", "vision", recipe, *flags)
    assert (done.code, done.err.count("error")) == (0, 0)
    assert f"Saved {tmp_path / 'other'}" in done.out
    record = yaml.safe_load((tmp_path / "other" / "run.yaml").read_text())
    assert (record["training"]["max_steps"], record["training"]["learning_rate"]) == (1, 0.001)
    assert record["run"]["hidden_sizes"] == [6]
    assert CT3DVisionForImageClassification.from_pretrained(tmp_path / "other").config.hidden_sizes == [6]
    assert not (tmp_path / "vision").exists()


def test_text_mntp_reads_a_report_table(radtower, tiny_llm_folder, tmp_path):
    rows = [("a", "p", "train", "There is no nodule."), ("b", "q", "validation", "small effusion")]
    columns = ["study_id", "patient_id", "split", "report"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "reports.csv", index=False)
    content = {
        "reports": str(tmp_path / "reports.csv"),
        "llm": str(tiny_llm_folder),
        "lora_rank": 2,
        "output_dir": str(tmp_path / "mntp"),
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (tmp_path / "mntp.yaml").write_text(yaml.safe_dump(content))
    done = radtower("train", "text-mntp", tmp_path / "mntp.yaml", "--max_steps", 2)
    assert (done.code, done.err.count("error")) == (0, 0)
    assert f"Saved {tmp_path / 'mntp'}" in done.out
    assert "eval_pseudo_perplexity" in (tmp_path / "mntp" / "training_log.jsonl").read_text()
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "mntp")) is LLMBiEncoderForMaskedNTP


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rat", "1"], "learning_rat"),
        (["--layers", "[1, 1]"], "layers and hidden_sizes"),
        (["--layers", "[1"], "expected"),
    ],
)
def test_a_wrong_field_is_an_error_without_a_traceback(radtower, recipe, flags, message):
    done = radtower("train", "vision", recipe, *flags)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_training_that_cannot_push_ends_well_and_the_model_waits(radtower, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\u00e9")  # no header can carry it: refused before any request
    saved = ("--save_strategy", "steps", "--save_steps", 2, "--max_steps", 2)
    pushed = ("--push-to", "tester/tower", "--push-tag", "v1", "--push-license", "mit", "--push-wait", "60")
    done = radtower("train", "vision", recipe, *saved, *pushed)
    assert done.code == 0, done.err
    assert f"Saved {tmp_path / 'vision'}" in done.out
    assert done.out.count("A push failed, and waits: a token of the Hub must be plain letters") == 1
    assert "Send them with radtower push --pending." in done.out
    last = sorted((tmp_path / "vision" / "pushes").glob("[0-9]*"))[-1]
    order = json.loads((last / "push.json").read_text())
    assert (order["repo_id"], order["message"]) == ("tester/tower", "Training: the model after 2 steps")
    assert order["target"]["tag"] == "v1"
    assert not order["is_public"]
    weights = (tmp_path / "vision" / "model.safetensors").read_bytes()
    assert (last / "files" / "model.safetensors").read_bytes() == weights
    assert "license: mit" in (last / "files" / "README.md").read_text()
    assert "hf_secret" not in done.out + done.err


def test_what_says_nothing_without_a_repository_is_refused(radtower, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        f"output_dir: {tmp_path / 'out'}\nmanifest: m.csv\ncache: c\nlabels: l\n"
    )
    done = radtower("train", "vision", tmp_path / "recipe.yaml", "--push-public", "--push-tag", "v1")
    assert done.code == 2
    assert "--push-to must be given for --push-public, --push-tag, got none" in done.err
    done = radtower("train", "vision", tmp_path / "recipe.yaml", "--push-to", "tower")
    assert done.code == 2
    assert "repo_id must be OWNER/NAME, got 'tower'" in done.err
    assert not (tmp_path / "out").exists()
