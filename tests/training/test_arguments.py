import re
from dataclasses import fields
from importlib.metadata import version

import pytest
import yaml
from transformers import TrainingArguments

from radtower.training.arguments import data_seed, parse_recipe, read_recipe, run_record, write_run_record
from radtower.training.runs import ClipRun, LabelerRun, TextContrastiveRun, TextMNTPRun, VisionRun

VISION = {"manifest": "m.csv", "labels": "l.parquet", "cache": "c"}
CLIP = {"manifest": "m.csv", "cache": "c", "vision": "v", "text": "t"}


def test_splits_a_recipe_into_a_run_and_training_arguments(tmp_path):
    settings = {**VISION, "hidden_sizes": [8, 16], "uncertain": 0.25, "learning_rate": 0.002, "seed": 7}
    run, arguments = parse_recipe({**settings, "output_dir": str(tmp_path)}, VisionRun)
    assert (run.manifest, run.labels, run.cache) == ("m.csv", "l.parquet", "c")
    assert (list(run.hidden_sizes), run.uncertain, run.not_mentioned) == ([8, 16], 0.25, 0.0)
    assert isinstance(arguments, TrainingArguments)
    assert (arguments.learning_rate, arguments.seed, arguments.output_dir) == (0.002, 7, str(tmp_path))


def test_nothing_is_sent_dropped_or_hidden_unless_the_recipe_says_so(tmp_path):
    _, arguments = parse_recipe({**CLIP, "output_dir": str(tmp_path)}, ClipRun)
    assert arguments.report_to == []
    assert arguments.remove_unused_columns is False
    assert arguments.logging_nan_inf_filter is False
    assert arguments.save_strategy == "no"
    assert arguments.logging_steps == 10
    _, other = parse_recipe({**CLIP, "output_dir": str(tmp_path), "logging_steps": 3}, ClipRun)
    assert other.logging_steps == 3


def test_refuses_a_key_that_nobody_reads():
    with pytest.raises(ValueError, match=r"not used .*\['learning_rat'\]"):
        parse_recipe({**VISION, "learning_rat": 0.1}, VisionRun)
    with pytest.raises(ValueError, match=r"not used .*\['projection_dim'\]"):
        parse_recipe({**VISION, "projection_dim": 8}, VisionRun)


@pytest.mark.parametrize(
    ("run_class", "settings", "missing"),
    [
        (VisionRun, VISION, "cache"),
        (ClipRun, CLIP, "text"),
        (LabelerRun, {"manifest": "m", "gold": "g", "llm": "x"}, "llm"),
    ],
)
def test_refuses_a_recipe_without_a_required_field(run_class, settings, missing):
    settings = {name: value for name, value in settings.items() if name != missing}
    with pytest.raises(ValueError, match=rf"recipe must be complete, got \[.*\]: .*'{missing}'"):
        parse_recipe(settings, run_class)


def test_reads_a_recipe_and_numbers_with_an_exponent(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "learning_rate: 1e-4\nweight_decay: 2.5E-3\nhidden_sizes: [8, 16]\nlabels: run1e4.parquet\n"
    )
    assert read_recipe(path) == {
        "learning_rate": 0.0001,
        "weight_decay": 0.0025,
        "hidden_sizes": [8, 16],
        "labels": "run1e4.parquet",
    }


def test_the_configuration_of_a_fresh_tower_is_a_mapping(tmp_path):
    (tmp_path / "recipe.yaml").write_text("vision:\n  model_type: vit\n  image_size: [8, 16]\nseed: 3\n")
    expected = {"vision": {"model_type": "vit", "image_size": [8, 16]}, "seed": 3}
    assert read_recipe(tmp_path / "recipe.yaml") == expected


@pytest.mark.parametrize("text", ["training:\n  learning_rate: 0.1\n", "- a\n- b\n", "just text\n", ""])
def test_refuses_a_recipe_that_is_not_flat(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"flat mapping of fields, got .*recipe\.yaml"):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_recipe_is_data_and_cannot_run_code(tmp_path):
    path, trap = tmp_path / "recipe.yaml", tmp_path / "trap"
    path.write_text(
        f"seed: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{trap}]]"
    )
    with pytest.raises(
        ValueError, match=r"plain YAML, got .*recipe\.yaml: could not determine a constructor"
    ):
        read_recipe(path)
    assert not trap.exists()


def test_a_recipe_that_is_no_yaml_is_refused_in_one_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: [1, 2\nlabels: x: y\n")
    with pytest.raises(ValueError, match=r"plain YAML, got .*recipe\.yaml: while parsing") as error:
        read_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(error.value)


def test_the_record_has_every_setting_the_seed_the_versions_and_the_commit(tmp_path):
    run = VisionRun(**VISION, hidden_sizes=(8, 16), stem_stride=(1, 2, 2), uncertain=0.5)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        seed=11,
        learning_rate=0.003,
        max_steps=4,
        warmup_steps=2,
        use_cpu=True,
        optim="adafactor",
        adam_beta1=0.8,
        dataloader_num_workers=2,
    )
    write_run_record(tmp_path, run, arguments)
    record = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert record["kind"] == "VisionRun"
    assert record["run"].keys() == {field.name for field in fields(VisionRun)}
    assert record["run"].items() >= {**VISION, "uncertain": 0.5, "not_mentioned": 0.0}.items()
    assert (record["run"]["hidden_sizes"], record["run"]["stem_stride"]) == ([8, 16], [1, 2, 2])
    assert record["training"] == {
        "learning_rate": 0.003,
        "weight_decay": 0.0,
        "num_train_epochs": 3.0,
        "max_steps": 4,
        "optim": "adafactor",
        "optim_args": None,
        "adam_beta1": 0.8,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "per_device_train_batch_size": 8,
        "world_size": 1,
        "dataloader_drop_last": False,
        "dataloader_num_workers": None,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 2,
        "lr_scheduler_type": "linear",
        "lr_scheduler_kwargs": None,
        "max_grad_norm": 1.0,
        "bf16": False,
        "fp16": False,
        "load_best_model_at_end": False,
        "metric_for_best_model": None,
        "seed": 11,
        "data_seed": None,
    }
    assert record["versions"] == {name: version(name) for name in ("radtower", "torch", "transformers")}
    assert record["git_commit"] is None or len(record["git_commit"]) == 40


def test_a_machine_without_git_still_gets_a_record(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    write_run_record(tmp_path, ClipRun(**CLIP), arguments)
    record = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert record["git_commit"] is None
    assert record["run"]["should_reset_vision"] is False


@pytest.mark.parametrize(("labels", "findings"), [(None, None), ("l.parquet", "ct_rate_18")])
def test_a_vision_run_takes_its_labels_from_one_place(labels, findings):
    with pytest.raises(ValueError, match=rf"got labels={labels!r} and findings={findings!r}"):
        VisionRun(manifest="m.csv", cache="c", labels=labels, findings=findings)


def test_a_recipe_without_a_label_table_names_the_findings(tmp_path):
    settings = {
        "manifest": "m.csv",
        "cache": "c",
        "labels": None,
        "findings": "ct_rate_18",
        "loss": "asymmetric",
    }
    run, _ = parse_recipe({**settings, "ema_decay": 0.999, "output_dir": str(tmp_path)}, VisionRun)
    assert (run.labels, run.findings, run.loss, run.ema_decay) == (None, "ct_rate_18", "asymmetric", 0.999)
    with pytest.raises(ValueError, match="either labels or findings must be given"):
        parse_recipe({**settings, "findings": None, "output_dir": str(tmp_path)}, VisionRun)


def test_an_unquoted_no_is_a_strategy(tmp_path):
    (tmp_path / "recipe.yaml").write_text("eval_strategy: no\nsave_strategy: no\nlogging_strategy: no\n")
    settings = {**VISION, **read_recipe(tmp_path / "recipe.yaml"), "output_dir": str(tmp_path)}
    _, arguments = parse_recipe(settings, VisionRun)
    assert (arguments.eval_strategy, arguments.save_strategy, arguments.logging_strategy) == (
        "no",
        "no",
        "no",
    )


def test_a_strength_without_augmentation_is_refused():
    with pytest.raises(ValueError, match=r"should_augment must be true .* got \{.*'max_noise_hu': 20.0"):
        VisionRun(**VISION, max_noise_hu=20.0)
    assert VisionRun(**VISION, should_augment=True, max_noise_hu=20.0).max_noise_hu == 20.0
    assert VisionRun(**VISION, should_augment=True).max_noise_hu == 0.0


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("mask_corruption", "BERT", "'mask' or 'bert'"),
        ("mask_token", "Blank", "'blank', 'eos' or 'mask'"),
        ("max_length", 1.5, "valid integer"),
        ("lora_rank", "many", "valid integer"),
    ],
)
def test_refuses_a_value_of_another_type(tmp_path, field, value, reason):
    settings = {"reports": "r", "llm": "l", "output_dir": str(tmp_path), field: value}
    with pytest.raises(ValueError, match=rf"{field} must be of the type .*got {value!r}.*{reason}"):
        parse_recipe(settings, TextMNTPRun)


def test_refuses_one_number_where_several_are_meant(tmp_path):
    settings = {"pairs": ["p"], "llm": "l", "output_dir": str(tmp_path), "matryoshka_dims": 16}
    with pytest.raises(ValueError, match=r"matryoshka_dims must be of the type .*got 16.*valid tuple"):
        parse_recipe(settings, TextContrastiveRun)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("learning_rate", "fast", "valid number"),
        ("per_device_train_batch_size", 1.5, "valid integer"),
        ("bf16", "maybe", "valid boolean"),
        ("eval_steps", [2], "valid number"),
        ("seed", None, "valid integer"),
    ],
)
def test_refuses_a_setting_of_training_of_another_type(tmp_path, field, value, reason):
    settings = {**CLIP, "output_dir": str(tmp_path), field: value}
    with pytest.raises(
        ValueError, match=rf"{field} must be of the type .*got {re.escape(repr(value))}.*{reason}"
    ):
        parse_recipe(settings, ClipRun)


def test_numbers_of_training_are_numbers_and_other_fields_stay_free(tmp_path):
    settings = {"learning_rate": "0.25", "max_steps": 4.0, "resume_from_checkpoint": True, "eval_steps": None}
    _, arguments = parse_recipe({**CLIP, "output_dir": str(tmp_path), **settings}, ClipRun)
    found = (arguments.learning_rate, arguments.max_steps, arguments.resume_from_checkpoint)
    assert found == (0.25, 4, True)


@pytest.mark.parametrize("field", ["per_device_train_batch_size", "per_device_eval_batch_size"])
def test_refuses_empty_batches(tmp_path, field):
    with pytest.raises(ValueError, match=rf"{field} must be at least 1, got 0\."):
        parse_recipe({**CLIP, "output_dir": str(tmp_path), field: 0}, ClipRun)


def test_the_order_of_the_data_has_the_seed_of_all_or_its_own(tmp_path):
    for own, expected in ((None, 7), (0, 0), (3, 3)):
        arguments = TrainingArguments(output_dir=str(tmp_path), seed=7, data_seed=own, use_cpu=True)
        assert data_seed(arguments) == expected


def test_the_number_of_readers_is_recorded_where_it_changes_the_order(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), dataloader_num_workers=2, use_cpu=True)
    stream = {"dataset": "d", "image_column": "i", "report_column": "r", "vision": "v", "text": "t"}
    for run, expected in ((ClipRun(**CLIP), None), (ClipRun(**stream), 2)):
        assert run_record(run, arguments)["training"]["dataloader_num_workers"] == expected
