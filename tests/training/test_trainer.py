import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, PrinterCallback

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.configuration.configuration_medclip import MedCLIPConfig
from radtower.data.augmentation import VolumeAugmentation
from radtower.data.collation import ReportCollator
from radtower.data.datasets import StudyDataset
from radtower.data.volume_cache import open_volume_cache
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.losses import asymmetric_loss, masked_binary_cross_entropy
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.callbacks import JsonLinesLog, StopOnNonFiniteLoss
from radtower.training.clip.clip_trainer import ContrastiveTrainer
from radtower.training.output_folder import last_complete_checkpoint
from radtower.training.runs import VisionRun
from radtower.training.trainer import SupervisedTrainer, macro_auroc_of_predictions
from radtower.training.weight_average import AVERAGE_FILE

RUN = VisionRun(manifest="m.csv", labels="l.parquet", cache="c")
TEXTS = [
    "There is no nodule",
    "effusion",
    "There is a small effusion",
    "no effusion present",
    "small nodule",
    "There is",
    "nodule and effusion",
    "Describe the nodule and the small effusion",
]


def _image_data(num_studies: int = 8) -> StudyDataset:
    generator = torch.Generator().manual_seed(5)
    scans = torch.rand(num_studies, 1, 8, 8, 8, generator=generator) * 2 - 1
    targets = (torch.rand(num_studies, 2, generator=generator) > 0.5).float()
    ids = [str(row) for row in range(num_studies)]
    return StudyDataset(ids, lambda study_id: scans[int(study_id)], targets.numpy())


def _image_classifier() -> CT3DVisionForImageClassification:
    torch.manual_seed(1)
    return CT3DVisionForImageClassification(
        CT3DVisionConfig(hidden_sizes=[4, 8], layers=[1, 1], num_labels=2, image_size=[8, 8, 8])
    )


def _report_classifier(llm_folder):
    encoder = LLMBiEncoder.from_llm(llm_folder, pooling="mean", max_length=64, num_labels=2)
    torch.manual_seed(2)
    model = LLMBiEncoderForSequenceClassification(encoder.config)
    return model, ReportCollator(encoder.tokenizer, 64)


def _report_data():
    return [
        {"text": text, "labels": torch.tensor([float(row % 2), float(row % 3 == 0)])}
        for row, text in enumerate(TEXTS)
    ]


def _assert_same_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_weight_decay_leaves_the_temperature_alone(tiny_medclip, make_arguments):
    trainer = ContrastiveTrainer(tiny_medclip, make_arguments(weight_decay=0.1))
    names = trainer.get_decay_parameter_names(tiny_medclip)
    assert "logit_scale.log_value" in dict(tiny_medclip.named_parameters())
    assert not [name for name in names if "logit_scale" in name]
    assert "visual_projection.weight" in names
    trainer.create_optimizer()
    decay = {
        id(parameter): group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert decay[id(tiny_medclip.logit_scale.log_value)] == 0.0
    assert decay[id(tiny_medclip.visual_projection.weight)] == 0.1


def test_logs_to_a_file_stops_on_divergence_and_prints_nothing(make_arguments, capsys):
    trainer = SupervisedTrainer(_image_classifier(), make_arguments(), train_dataset=_image_data())
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert {JsonLinesLog, StopOnNonFiniteLoss} <= set(kinds)
    assert PrinterCallback not in kinds
    trainer.train()
    assert capsys.readouterr().out == ""


def test_a_diverged_loss_stops_a_real_run(make_arguments):
    model = _image_classifier()
    torch.nn.init.constant_(model.classifier.bias, math.nan)
    trainer = SupervisedTrainer(model, make_arguments(), train_dataset=_image_data())
    with pytest.raises(FloatingPointError, match="got nan at step 1"):
        trainer.train()


def test_the_model_folder_holds_no_pickle(make_arguments, tmp_path):
    trainer = SupervisedTrainer(_image_classifier(), make_arguments(), train_dataset=_image_data())
    trainer.train()
    folder = trainer.save_model_folder(RUN)
    assert folder == tmp_path / "model"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "model.safetensors", "run.yaml", "training_log.jsonl"]


def test_workers_that_would_never_hear_of_an_epoch_are_refused(make_arguments):
    kept = make_arguments(dataloader_num_workers=1, dataloader_persistent_workers=True)
    with pytest.raises(ValueError, match=r"dataloader_persistent_workers must be false .*, got True"):
        SupervisedTrainer(_image_classifier(), kept, train_dataset=_image_data())
    SupervisedTrainer(_image_classifier(), kept, train_dataset=_report_data())  # the same in every epoch


EVERYTHING = {
    "ema_decay": 0.6,
    "layer_lr_decay": 0.7,
    "loss_function": partial(masked_binary_cross_entropy, positive_weight=torch.tensor([2.0, 0.5])),
}
SAVING = {
    "max_steps": 5,
    "save_strategy": "steps",
    "save_steps": 2,
    "weight_decay": 0.01,
    "lr_scheduler_type": "cosine",
    "seed": 3,
}


@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["plain", "everything"])
def test_resuming_equals_the_run_that_was_never_stopped(make_arguments, tmp_path, settings):
    evaluating = {**SAVING, "eval_strategy": "steps", "eval_steps": 1}
    trainers = {
        name: SupervisedTrainer(
            _image_classifier(),
            make_arguments(name, **evaluating),
            train_dataset=_image_data(),
            eval_dataset=_image_data(6),
            **settings,
        )
        for name in ("whole", "resumed")
    }
    whole, resumed = trainers.values()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == 5
    _assert_same_weights(whole.model, resumed.model)
    log = (tmp_path / "resumed" / "training_log.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in log.splitlines() if '"loss"' in line]
    assert steps == [3, 4, 5]
    at_step_2 = CT3DVisionForImageClassification.from_pretrained(tmp_path / "whole" / "checkpoint-2")
    assert not torch.equal(at_step_2.classifier.weight, resumed.model.classifier.weight)
    saved = [
        CT3DVisionForImageClassification.from_pretrained(trainer.save_model_folder(RUN))
        for trainer in (whole, resumed)
    ]
    _assert_same_weights(*saved)
    is_average = not torch.equal(saved[0].classifier.weight, whole.model.classifier.weight)
    assert is_average == bool(settings)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resuming_draws_the_same_augmentations(make_arguments, tmp_path, study_folder, num_workers):
    cache = open_volume_cache(study_folder / "cache")
    volume_ids = sorted(cache.volumes)  # seven: three steps an epoch, and the checkpoint is within one
    targets = np.arange(2 * len(volume_ids)).reshape(-1, 2) % 3 % 2
    trainers = []
    for name in ("whole", "resumed", "other"):
        augmentation = VolumeAugmentation(
            image_processor=cache.image_processor, seed=4 + (name == "other"), max_noise_hu=400.0
        )
        dataset = StudyDataset(volume_ids, cache, targets, augmentation=augmentation)
        arguments = make_arguments(name, **SAVING, dataloader_num_workers=num_workers)
        trainers.append(SupervisedTrainer(_image_classifier(), arguments, train_dataset=dataset))
    whole, resumed, other = trainers
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    _assert_same_weights(whole.model, resumed.model)
    other.train()
    assert not torch.equal(whole.model.classifier.weight, other.model.classifier.weight)


def test_true_resumes_from_the_last_checkpoint_that_a_kill_left_complete(make_arguments, tmp_path):
    def make(**settings):
        arguments = make_arguments("run", **SAVING | settings)
        return SupervisedTrainer(_image_classifier(), arguments, train_dataset=_image_data(), ema_decay=0.6)

    whole = make()
    whole.train()
    expected = {name: value.clone() for name, value in whole.model.state_dict().items()}
    average = {name: value.clone() for name, value in whole.average.values.items()}
    for name in ("checkpoint-4", "checkpoint-5"):  # killed while the fourth step was written
        (tmp_path / "run" / name / "trainer_state.json").unlink(missing_ok=True)
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-2"
    again = make()
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in expected.items())
    assert all(torch.equal(again.average.values[name], value) for name, value in average.items())


def test_resuming_needs_a_complete_checkpoint_with_what_the_run_keeps(make_arguments, tmp_path):
    trainer = SupervisedTrainer(
        _image_classifier(), make_arguments("run", **SAVING), train_dataset=_image_data(), ema_decay=0.6
    )
    with pytest.raises(
        ValueError, match=rf"complete checkpoint to resume from, got none in {tmp_path / 'run'}"
    ):
        trainer.train(resume_from_checkpoint=True)
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert (checkpoint / AVERAGE_FILE).is_file()
    (checkpoint / AVERAGE_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f"must hold {AVERAGE_FILE} .* got none in {checkpoint}"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_the_average_is_what_is_evaluated_and_saved(make_arguments):
    data = _image_data()
    trainer = SupervisedTrainer(
        _image_classifier(), make_arguments(max_steps=4), train_dataset=data, eval_dataset=data, ema_decay=0.9
    )
    trainer.train()
    raw = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    metrics = trainer.evaluate()
    folder = trainer.save_model_folder(RUN)
    assert all(torch.equal(trainer.model.state_dict()[name], value) for name, value in raw.items())
    saved = CT3DVisionForImageClassification.from_pretrained(folder).eval()
    pixels = torch.stack([sample["pixel_values"] for sample in data])
    with torch.no_grad():
        loss = saved(pixels, labels=data.targets).loss.item()
    assert metrics["eval_loss"] == pytest.approx(loss, abs=1e-5)
    assert not torch.equal(saved.classifier.weight, raw["classifier.weight"])
    assert AVERAGE_FILE not in {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_best_checkpoint_is_what_is_saved(make_arguments, tmp_path, ema_decay):
    # The largest loss is "best", so that the best model is not the last one.
    arguments = make_arguments(
        max_steps=4,
        learning_rate=10.0,
        greater_is_better=True,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    data = _image_data()
    trainer = SupervisedTrainer(
        _image_classifier(), arguments, train_dataset=data, eval_dataset=data, ema_decay=ema_decay
    )
    trainer.train()
    assert trainer.state.best_global_step < 4
    saved = CT3DVisionForImageClassification.from_pretrained(trainer.save_model_folder(RUN)).eval()
    pixels = torch.stack([sample["pixel_values"] for sample in data])
    with torch.no_grad():
        loss = saved(pixels, labels=data.targets).loss.item()
    assert loss == pytest.approx(trainer.state.best_metric, rel=1e-4)


def test_a_checkpoint_never_holds_a_diverged_model(make_arguments, tmp_path):
    arguments = make_arguments(
        max_steps=20, learning_rate=1e30, logging_steps=100, save_strategy="steps", save_steps=1
    )
    trainer = SupervisedTrainer(_image_classifier(), arguments, train_dataset=_image_data())
    with pytest.raises(FloatingPointError, match="must be finite, got"):
        trainer.train()
    for checkpoint in (tmp_path / "model").glob("checkpoint-*"):
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        logged = [entry for entry in state["log_history"] if entry["step"] == state["global_step"]]
        assert [math.isfinite(entry["loss"] + entry["grad_norm"]) for entry in logged] == [True]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_another_loss_replaces_that_of_the_model_in_training_and_evaluation(make_arguments, accumulation):
    data = _image_data()
    arguments = make_arguments(
        max_steps=1,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.0,
        train_sampling_strategy="sequential",
    )
    loss = partial(asymmetric_loss, focus_positive=1.0, focus_negative=2.0)
    trainer = SupervisedTrainer(
        _image_classifier(), arguments, train_dataset=data, eval_dataset=data, loss_function=loss
    )
    pixels = torch.stack([sample["pixel_values"] for sample in data])
    model = _image_classifier()
    parts = [slice(start, start + 8 // accumulation) for start in range(0, 8, 8 // accumulation)]
    expected = np.mean([loss(model(pixels[part]).logits, data.targets[part]).item() for part in parts])
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-4)
    metrics = trainer.evaluate()
    logits = trainer.model.eval()(pixels).logits
    assert metrics["eval_loss"] == pytest.approx(loss(logits, data.targets).item(), abs=1e-4)
    assert metrics["eval_num_findings"] == 2.0


@pytest.mark.parametrize("loss_function", [None, masked_binary_cross_entropy])
def test_labels_are_smoothed_in_training_only_and_where_they_are_known(make_arguments, loss_function):
    data = _image_data()
    data.targets[1:, 0] = torch.tensor([1.0, 1, 1, 1, 1, 1, 0])
    data.targets[0, 0] = -100
    arguments = make_arguments(
        max_steps=1,
        per_device_train_batch_size=8,
        learning_rate=0.0,
        train_sampling_strategy="sequential",
        label_smoothing_factor=0.2,
    )
    model = _image_classifier()
    with torch.no_grad():
        model.classifier.weight *= 100  # far from 1/2, where smoothing tells
    pixels = torch.stack([sample["pixel_values"] for sample in data])
    logits = model(pixels).logits
    trainer = SupervisedTrainer(
        model, arguments, train_dataset=data, eval_dataset=data, loss_function=loss_function
    )
    smoothed = data.targets * 0.8 + 0.1
    smoothed[0, 0] = -100
    trainer.train()
    expected = masked_binary_cross_entropy(logits, smoothed).item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert abs(expected - masked_binary_cross_entropy(logits, data.targets).item()) > 0.05
    metrics = trainer.evaluate()
    plain = masked_binary_cross_entropy(model.eval()(pixels).logits, data.targets).item()
    assert metrics["eval_loss"] == pytest.approx(plain, abs=1e-5)


def test_smoothed_labels_are_refused_where_there_are_none(tiny_medclip, make_arguments):
    with pytest.raises(ValueError, match=r"label_smoothing_factor must be 0 .* got 0\.1\. Leave it out"):
        ContrastiveTrainer(tiny_medclip, make_arguments(label_smoothing_factor=0.1))


def test_each_depth_has_its_learning_rate_and_the_schedule_keeps_the_ratio(make_arguments):
    arguments = make_arguments(
        max_steps=4,
        learning_rate=0.008,
        weight_decay=0.01,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 0.002},
    )
    trainer = SupervisedTrainer(
        _image_classifier(), arguments, train_dataset=_image_data(), layer_lr_decay=0.5
    )
    trainer.create_optimizer()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.001, 0.002, 0.004, 0.008}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.01}
    trainer.train()
    last = {round(group["lr"], 9) for group in trainer.optimizer.param_groups}
    assert last == {0.00025, 0.0005, 0.001, 0.002}


def test_two_small_batches_that_are_accumulated_equal_a_large_one(tiny_llm_folder, make_arguments):
    # With the classifier of reports: batch normalization sees each small batch alone.
    trained = []
    for batch_size, steps in ((8, 1), (4, 2)):
        model, collator = _report_classifier(tiny_llm_folder)
        before = model.finding_attention.score.weight.detach().clone()
        arguments = make_arguments(
            f"run-{batch_size}",
            max_steps=3,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=0.5,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
        )
        SupervisedTrainer(model, arguments, train_dataset=_report_data(), data_collator=collator).train()
        assert (model.finding_attention.score.weight - before).abs().max() > 0.05
        trained.append(model)
    for (name, large), small in zip(trained[0].named_parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(
            small, large, atol=2e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_evaluation_reports_loss_and_macro_auroc_of_reports_of_any_length(tiny_llm_folder, make_arguments):
    model, collator = _report_classifier(tiny_llm_folder)
    data = _report_data()
    arguments = make_arguments(per_device_eval_batch_size=3)
    trainer = SupervisedTrainer(model, arguments, eval_dataset=data, data_collator=collator)
    metrics = trainer.evaluate()
    with torch.no_grad():
        batch = collator(data)
        output = model.eval()(**batch)
    assert metrics["eval_loss"] == pytest.approx(output.loss.item(), abs=1e-4)
    labels = batch["labels"].numpy()
    by_hand = []
    for scores, truth in zip(output.logits.numpy().T, labels.T, strict=True):
        pairs = [(p, n) for p in scores[truth == 1] for n in scores[truth == 0]]
        by_hand.append(np.mean([p > n for p, n in pairs]))
    assert metrics["eval_macro_auroc"] == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert metrics["eval_num_findings"] == 2.0


def test_evaluation_drops_no_sample_where_training_drops_the_last_batch(make_arguments):
    data = _image_data()
    arguments = make_arguments(dataloader_drop_last=True, per_device_eval_batch_size=3)
    trainer = SupervisedTrainer(_image_classifier(), arguments, train_dataset=data, eval_dataset=data)
    assert [len(batch["labels"]) for batch in trainer.get_eval_dataloader()] == [3, 3, 2]
    assert [len(batch["labels"]) for batch in trainer.get_train_dataloader()] == [3, 3]


def test_a_training_without_a_whole_batch_is_refused(make_arguments):
    arguments = make_arguments(dataloader_drop_last=True, per_device_train_batch_size=9)
    trainer = SupervisedTrainer(_image_classifier(), arguments, train_dataset=_image_data())
    with pytest.raises(ValueError, match=r"got 8 samples for batches of 9"):
        trainer.train()


def test_macro_auroc_leaves_out_unknown_and_soft_labels():
    logits = np.array([[0.1, 5.0, 1.0], [0.9, 1.0, 2.0], [0.4, 2.0, 3.0], [0.5, 3.0, 4.0], [9.0, 4.0, 5.0]])
    labels = np.array([[0, 1, 1], [1, 0, 1], [1, -100, 1], [0, 1, 1], [0.5, 0.0, -100]])
    # Finding 0, without the soft label: 0.9 beats both, 0.4 beats one of two negatives: 3 of 4 pairs.
    # Finding 1: 5.0 beats 1.0 and 4.0, 3.0 beats 1.0: 3 of 4. Finding 2 has one class.
    for predictions in (logits, (logits, "token weights")):
        got = macro_auroc_of_predictions(EvalPrediction(predictions=predictions, label_ids=labels))
        assert got == {"macro_auroc": pytest.approx(0.75), "num_findings": 2.0}


def test_weight_decay_spares_norms_prompts_latents_and_the_scale(tiny_medclip, make_arguments):
    text = tiny_medclip.config.text_config.to_dict() | {
        "pooling": "latent_attention",
        "soft_prompt": "nodule",
    }
    vision = tiny_medclip.config.vision_config.to_dict()
    model = MedCLIPModel(
        MedCLIPConfig(
            vision_config=vision,
            text_config=text | {"num_soft_tokens": 2},
            loss="siglip",
            findings=["nodule"],
        )
    )
    trainer = SupervisedTrainer(model=_image_classifier(), args=make_arguments(), train_dataset=_image_data())
    decayed = set(trainer.get_decay_parameter_names(model)) & {name for name, _ in model.named_parameters()}
    spared = {name for name, _ in model.named_parameters()} - decayed
    matrices = {name for name, value in model.named_parameters() if value.ndim > 1}
    assert decayed == {name for name in matrices if not name.endswith((".latents", "soft_prompt.weight"))}
    assert {"logit_scale.log_value", "logit_bias.value", "text_model.soft_prompt.weight"} <= spared
    assert len(matrices - decayed) == 2
    norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm3d)}
    assert {f"{name}.weight" for name in norms} <= spared
    assert norms
