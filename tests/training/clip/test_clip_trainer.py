"""The trainer of dual towers, on the tiny model of pair_worker.py."""

import json
import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.clip.clip_trainer import ContrastiveTrainer
from radtower.training.clip.grad_cache import cached_backward, require_equal_shares
from radtower.training.clip.pair_loss import PairLoss
from radtower.training.clip.pair_statistics import pair_statistics, similarity_histograms

sys.path.insert(0, str(Path(__file__).parent))
from pair_worker import StudiesOfWorker, make_batch, make_model, train

STEPS = {"max_steps": 3, "per_device_train_batch_size": 4, "optim": "sgd", "learning_rate": 0.5}


def _trainer(make_arguments, name="model", model=None, settings=None, **options) -> ContrastiveTrainer:
    model = make_model("infonce") if model is None else model
    arguments = make_arguments(name, **STEPS | (settings or {}))
    return ContrastiveTrainer(model, arguments, train_dataset=StudiesOfWorker(), **options)


def _log(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def _assert_same(left, right, **tolerance):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], **tolerance)


@pytest.mark.parametrize("settings", [{}, {"bf16": True}])
def test_training_in_chunks_gives_the_model_of_whole_batches(make_arguments, settings):
    whole = _trainer(make_arguments, settings=settings)
    chunked = _trainer(make_arguments, "chunked", settings=settings, chunk_size=3)
    for trainer in (whole, chunked):
        trainer.train()
    start = make_model("infonce")
    moved = (start.visual_projection.weight - whole.model.visual_projection.weight).abs().max()
    assert moved > 0.01
    tolerance = {"rtol": 0, "atol": 0.05 * moved.item()} if settings else {"rtol": 1e-5, "atol": 1e-6}
    _assert_same(whole.model, chunked.model, **tolerance)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_scale_above_its_cap_is_brought_back_and_learns(make_arguments, chunk_size):
    model = make_model("infonce")
    torch.nn.init.constant_(model.logit_scale.log_value, 9.0)
    trainer = _trainer(make_arguments, model=model, chunk_size=chunk_size)
    trainer.train()
    # Vectors of a random model: a large scale makes its wrong answers cost more.
    assert 2 < model.logit_scale.log_value.item() < math.log(100) - 1e-3


def _loss_of(pair_loss, relations, output):
    return pair_loss(output, **relations)


def test_dropout_draws_the_same_numbers_both_times():
    batch = make_batch()
    relations = {name: batch.pop(name) for name in ("labels", "pair_keys")}
    gradients = []
    for is_cached in (False, True):
        model = make_model("infonce", dropout=0.3).train()
        pair_loss = PairLoss(objective=model.objective)
        torch.manual_seed(9)
        if is_cached:
            loss_of = partial(_loss_of, pair_loss, relations)
            cached_backward(model, batch, 4, loss_of, torch.Tensor.backward)
            after = torch.rand(1)
        else:  # the same chunks, with all of their activations
            parts = [{n: v[at : at + 4] for n, v in batch.items()} for at in (0, 4, 8)]
            outputs = [model(**part, return_loss=False) for part in parts]
            after = torch.rand(1)
            joined = {"logit_scale": outputs[0]["logit_scale"]}
            for name in (
                "image_projection",
                "text_projection",
                "finding_logits_image",
                "finding_logits_text",
            ):
                joined[name] = torch.cat([output[name] for output in outputs])
            pair_loss(joined, **relations).backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.requires_grad} | {"": after}
        )
    kept, cached = gradients
    for name, value in kept.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-4, atol=1e-6)
    calm = make_model("infonce").train()
    PairLoss(objective=calm.objective)(calm(**batch, return_loss=False), **relations).backward()
    assert not torch.allclose(calm.visual_projection.weight.grad, kept["visual_projection.weight"], rtol=0.05)


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_frozen_tower_is_run_once_and_without_dropout(make_arguments, tower, chunk_size):
    model = make_model("infonce", dropout=0.3)
    getattr(model, tower).requires_grad_(False)
    calls = {"vision_model": [], "text_model": []}
    for name, found in calls.items():
        getattr(model, name).register_forward_hook(
            lambda module, inputs, output, found=found: found.append(
                (module.training, len(output.last_hidden_state))
            )
        )
    _trainer(make_arguments, model=model, chunk_size=chunk_size, settings={"max_steps": 1}).train()
    other = ({*calls} - {tower}).pop()
    once = [4] if chunk_size is None else [2, 2]
    assert calls[tower] == [(False, size) for size in once]
    assert calls[other] == [(True, size) for size in (once if chunk_size is None else once * 2)]


def test_batch_normalization_counts_a_chunk_once(make_arguments):
    model = make_model("infonce")
    model.visual_projection = torch.nn.Sequential(model.visual_projection, torch.nn.BatchNorm1d(6))
    _trainer(make_arguments, model=model, chunk_size=2, settings={"max_steps": 1}).train()
    assert model.visual_projection[1].num_batches_tracked == 2


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.6, "chunk_size": 2}])
def test_resuming_equals_the_run_that_was_never_stopped(make_arguments, tmp_path, settings):
    saving = {
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
        "weight_decay": 0.1,
    }
    trainers = {
        name: _trainer(
            make_arguments,
            name,
            make_model("infonce", dropout=0.2),
            saving | {"learning_rate": 0.01},
            **settings,
        )
        for name in ("whole", "resumed")
    }
    trainers["whole"].train()
    trainers["resumed"].train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    _assert_same(trainers["whole"].model, trainers["resumed"].model, rtol=0, atol=0)
    if settings:
        for name, value in trainers["whole"].average.values.items():
            assert torch.equal(value, trainers["resumed"].average.values[name])


def test_logs_what_the_batch_says(make_arguments, tmp_path):
    trainer = _trainer(make_arguments, settings={"max_steps": 2, "learning_rate": 0.0})
    trainer.train()
    logs = [entry for entry in _log(tmp_path / "model") if "loss" in entry]
    assert len(logs) == 2
    rows = list(trainer._get_train_sampler())[:4]
    samples = [StudiesOfWorker()[row] for row in rows]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    model = trainer.model.eval()
    output = model(
        **{n: batch[n] for n in ("pixel_values", "input_ids", "attention_mask")}, return_loss=False
    )
    expected = pair_statistics(output.image_projection, output.text_projection, batch["pair_keys"])
    for name, value in expected.items():
        assert logs[0][name] == pytest.approx(value, abs=1e-5)
    assert logs[0]["logit_scale"] == pytest.approx(model.logit_scale().item())
    counts = similarity_histograms(output.image_projection, output.text_projection, batch["pair_keys"])
    assert {name: logs[0][name] for name in counts} == counts
    assert logs[0]["studies_per_second"] > 0
    assert logs[0]["grad_norm"] > 0
    assert all(name not in entry for name in counts for entry in trainer.state.log_history)  # numbers only


def test_a_log_between_says_nothing_of_the_batch_of_another_step(make_arguments, tmp_path):
    settings = {"max_steps": 4, "logging_steps": 2, "save_strategy": "steps", "save_steps": 3}
    _trainer(make_arguments, settings=settings).train()
    logs = {entry["step"]: entry for entry in _log(tmp_path / "model") if "loss" in entry}
    assert {step: "accuracy" in entry for step, entry in logs.items()} == {2: True, 3: False, 4: True}
    assert all(entry["studies_per_second"] > 0 for entry in logs.values())


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_training_makes_no_matrix_of_the_batch(make_arguments, chunk_size):
    outputs = []
    model = make_model("infonce")
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    _trainer(make_arguments, model=model, chunk_size=chunk_size, settings={"max_steps": 1}).train()
    assert len(outputs) == (1 if chunk_size is None else 4)
    assert all(output.logits_per_image is None for output in outputs)


def test_a_loss_that_is_not_finite_names_the_volumes(make_arguments):
    class Damaged(StudiesOfWorker):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return sample | {"pixel_values": sample["pixel_values"] * (float("nan") if index == 5 else 1)}

    trainer = _trainer(make_arguments, settings={"max_steps": 9})
    trainer.train_dataset = Damaged()
    with pytest.raises(FloatingPointError, match=r"finite, got nan at step \d for volumes .*volume-5"):
        trainer.train()


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_stops_where_the_towers_say_the_same_of_everything(make_arguments, chunk_size):
    model = make_model("infonce")
    for projection in (model.visual_projection, model.text_projection):
        torch.nn.init.zeros_(projection.weight)
    with pytest.raises(FloatingPointError, match=r"different vectors, got cosines within 0\.0e\+00 of"):
        _trainer(make_arguments, model=model, chunk_size=chunk_size).train()


def test_refuses_to_accumulate(make_arguments):
    with pytest.raises(ValueError, match=r"accumulation_steps must be 1 .* got 2: .* set chunk_size"):
        _trainer(make_arguments, settings={"gradient_accumulation_steps": 2})


def test_refuses_chunks_of_nothing():
    with pytest.raises(ValueError, match=r"chunk_size must be at least 1, got 0\. Use what fits"):
        cached_backward(make_model("infonce"), make_batch(), 0, lambda output: output, torch.Tensor.backward)


def test_refuses_shards_that_would_wait_for_each_other():
    require_equal_shares([3, 3])
    with pytest.raises(ValueError, match=r"equally many studies .*, got \[3, 2\]\. Set dataloader_drop"):
        require_equal_shares([3, 2])


class _Plain(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        sample = StudiesOfWorker()[index]
        return {name: sample[name] for name in ("pixel_values", "input_ids", "attention_mask")}


def test_data_without_keys_labels_and_names_can_be_trained_on(make_arguments, tmp_path):
    trainer = ContrastiveTrainer(make_model("infonce"), make_arguments(**STEPS), train_dataset=_Plain())
    trainer.train()
    assert {"accuracy", "loss"} <= {name for entry in _log(tmp_path / "model") for name in entry}


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [0, 2])
def test_training_in_two_processes_gives_the_model_of_one(run_workers, tmp_path, chunk_size):
    run_workers(Path(__file__).parent / "pair_worker.py", 2, tmp_path, chunk_size)
    alone = MedCLIPModel.from_pretrained(train(tmp_path, 4, 0))
    together = MedCLIPModel.from_pretrained(tmp_path / "batch_2")
    assert (
        alone.visual_projection.weight - make_model("infonce").visual_projection.weight
    ).abs().max() > 0.01
    _assert_same(alone, together, rtol=1e-5, atol=1e-6)


def test_the_best_checkpoint_is_loaded_with_all_of_its_weights(make_arguments, tmp_path):
    settings = {
        "max_steps": 3,
        "greater_is_better": True,  # the largest loss is "best", so that the best model is not the last one
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "label_names": [],
    }
    arguments = make_arguments(**STEPS | settings)
    data = StudiesOfWorker()
    trainer = ContrastiveTrainer(make_model("infonce"), arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.state.best_global_step < 3
    best = MedCLIPModel.from_pretrained(trainer.state.best_model_checkpoint)
    _assert_same(trainer.model, best, rtol=0, atol=0)


@pytest.mark.parametrize("left_out", [(), ("labels",), ("pair_keys", "row"), ("labels", "pair_keys", "row")])
def test_evaluation_gives_the_loss_with_and_without_labels_and_keys(make_arguments, left_out):
    class Some(StudiesOfWorker):
        def __getitem__(self, index):
            return {name: value for name, value in super().__getitem__(index).items() if name not in left_out}

    trainer = _trainer(make_arguments, settings={"per_device_eval_batch_size": 6}, eval_dataset=Some())
    found = trainer.evaluate()
    model = trainer.model.eval()
    batch = {name: value for name, value in make_batch().items() if name not in left_out}
    expected = 0.0
    for rows in (slice(0, 6), slice(6, 9)):
        part = {name: value[rows] for name, value in batch.items()}
        relations = {name: part.pop(name) for name in ("labels", "pair_keys") if name in part}
        with torch.no_grad():
            loss = PairLoss(objective=model.objective)(model(**part, return_loss=False), **relations)
        expected += loss.item() * len(part["input_ids"]) / 9
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.predict(Some()).predictions is None


@pytest.mark.parametrize(
    ("settings", "is_told"),
    [
        ({"warmup_steps": 3}, True),
        ({"warmup_steps": 2}, False),
        ({"warmup_steps": 0}, False),
        ({"warmup_steps": 3, "lr_scheduler_type": "constant"}, False),
    ],
)
def test_a_warm_up_that_lasts_longer_than_the_training_is_told(make_arguments, caplog, settings, is_told):
    _trainer(make_arguments, settings=settings | {"max_steps": 3}).train()
    told = [record.getMessage() for record in caplog.records if "warmup_steps" in record.getMessage()]
    expected = (
        "warmup_steps should be below the 3 steps of the training, got 3: the learning rate ends at 0.5 of "
        "0.5. Lower it."
    )
    assert told == ([expected] if is_told else [])


def test_a_frozen_tower_is_run_in_the_precision_of_the_training(make_arguments):
    model = make_model("infonce")
    model.vision_model.requires_grad_(False)
    dtypes = []
    layer = next(module for module in model.vision_model.modules() if isinstance(module, torch.nn.Linear))
    layer.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    _trainer(make_arguments, model=model, settings={"max_steps": 1, "bf16": True}).train()
    assert dtypes == [torch.bfloat16]
