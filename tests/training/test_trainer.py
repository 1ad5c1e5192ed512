import math

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, PrinterCallback, TrainingArguments

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.data.collation import ReportCollator
from radtower.data.datasets import StudyDataset
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder, LLMBiEncoderForSequenceClassification
from radtower.training.arguments import VisionRun
from radtower.training.callbacks import JsonLinesLog, StopOnNonFiniteLoss
from radtower.training.trainer import ContrastiveTrainer, SupervisedTrainer, macro_auroc_of_predictions

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


def test_contrastive_training_refuses_more_than_one_process(tiny_medclip, tmp_path):
    class TwoProcesses(TrainingArguments):
        @property
        def world_size(self):
            return 2

    with pytest.raises(ValueError, match="must run in one process, got 2"):
        ContrastiveTrainer(tiny_medclip, TwoProcesses(output_dir=str(tmp_path), use_cpu=True))


def test_resuming_equals_the_run_that_was_never_stopped(make_arguments, tmp_path):
    settings = {
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 2,
        "weight_decay": 0.01,
        "lr_scheduler_type": "cosine",
        "seed": 3,
    }
    whole = SupervisedTrainer(
        _image_classifier(), make_arguments("whole", **settings), train_dataset=_image_data()
    )
    whole.train()
    resumed = SupervisedTrainer(
        _image_classifier(), make_arguments("resumed", **settings), train_dataset=_image_data()
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == 5
    _assert_same_weights(whole.model, resumed.model)
    log = (tmp_path / "resumed" / "training_log.jsonl").read_text()
    assert [line.split(",")[0] for line in log.splitlines()][:2] == ['{"step": 3', '{"step": 4']
    at_step_2 = CT3DVisionForImageClassification.from_pretrained(tmp_path / "whole" / "checkpoint-2")
    assert not torch.equal(at_step_2.classifier.weight, resumed.model.classifier.weight)


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


def test_macro_auroc_leaves_out_unknown_and_soft_labels():
    logits = np.array([[0.1, 5.0, 1.0], [0.9, 1.0, 2.0], [0.4, 2.0, 3.0], [0.5, 3.0, 4.0], [9.0, 4.0, 5.0]])
    labels = np.array([[0, 1, 1], [1, 0, 1], [1, -100, 1], [0, 1, 1], [0.5, 0.0, -100]])
    # Finding 0, without the soft label: 0.9 beats both, 0.4 beats one of two negatives: 3 of 4 pairs.
    # Finding 1: 5.0 beats 1.0 and 4.0, 3.0 beats 1.0: 3 of 4. Finding 2 has one class.
    for predictions in (logits, (logits, "token weights")):
        got = macro_auroc_of_predictions(EvalPrediction(predictions=predictions, label_ids=labels))
        assert got == {"macro_auroc": pytest.approx(0.75), "num_findings": 2.0}
