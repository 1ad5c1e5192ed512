import json
import math
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from radtower.training.callbacks import JsonLinesLog, OnStep, SetDatasetEpoch, StopOnNonFiniteLoss

BF16 = SimpleNamespace(fp16=False)


def test_refuses_a_run_that_would_hide_a_diverged_loss():
    arguments = SimpleNamespace(logging_nan_inf_filter=True)
    with pytest.raises(ValueError, match="logging_nan_inf_filter must be False, got True"):
        StopOnNonFiniteLoss().on_train_begin(arguments, TrainerState(), TrainerControl())


def test_accepts_a_run_that_shows_a_diverged_loss():
    arguments = SimpleNamespace(logging_nan_inf_filter=False)
    StopOnNonFiniteLoss().on_train_begin(arguments, TrainerState(), TrainerControl())


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_diverged_loss_stops_training_and_names_the_step(loss):
    with pytest.raises(FloatingPointError, match=f"got {loss} at step 7"):
        StopOnNonFiniteLoss().on_log(BF16, TrainerState(global_step=7), TrainerControl(), logs={"loss": loss})


def test_a_diverged_gradient_stops_training_except_in_float16():
    logs, state = {"loss": 0.5, "grad_norm": math.inf}, TrainerState(global_step=8)
    with pytest.raises(FloatingPointError, match="grad_norm must be finite, got inf at step 8"):
        StopOnNonFiniteLoss().on_log(BF16, state, TrainerControl(), logs=logs)
    StopOnNonFiniteLoss().on_log(SimpleNamespace(fp16=True), state, TrainerControl(), logs=logs)
    with pytest.raises(FloatingPointError, match="loss must be finite, got nan at step 8"):
        StopOnNonFiniteLoss().on_log(
            SimpleNamespace(fp16=True), state, TrainerControl(), logs={**logs, "loss": math.nan}
        )


@pytest.mark.parametrize("hook", ["on_step_end", "on_epoch_end"])
def test_a_checkpoint_is_preceded_by_a_log(hook):
    for should_log, should_save, expected in (
        (False, True, True),
        (True, False, True),
        (False, False, False),
    ):
        control = TrainerControl(should_log=should_log, should_save=should_save)
        getattr(StopOnNonFiniteLoss(), hook)(BF16, TrainerState(), control)
        assert (control.should_log, control.should_save) == (expected, should_save)


@pytest.mark.parametrize("logs", [{"loss": 0.7}, {"eval_loss": 0.7}])
def test_a_finite_loss_does_not_stop_training(logs):
    StopOnNonFiniteLoss().on_log(BF16, TrainerState(), TrainerControl(), logs=logs)


def _lines(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def test_every_log_is_a_line_with_its_step(tmp_path):
    arguments, log = SimpleNamespace(output_dir=str(tmp_path / "new")), JsonLinesLog()
    log.on_train_begin(arguments, TrainerState(), TrainerControl())
    log.on_log(arguments, TrainerState(global_step=3), TrainerControl(), logs={"loss": 0.5})
    log.on_log(arguments, TrainerState(global_step=6), TrainerControl(), logs={"eval_loss": 0.25})
    assert _lines(tmp_path / "new") == [{"step": 3, "loss": 0.5}, {"step": 6, "eval_loss": 0.25}]


def test_a_resumed_run_goes_on_behind_its_checkpoint_and_a_new_one_starts_over(tmp_path):
    arguments, log = SimpleNamespace(output_dir=str(tmp_path)), JsonLinesLog()
    for step in (1, 2, 3):
        log.on_log(arguments, TrainerState(global_step=step), TrainerControl(), logs={"loss": 0.5})
    with (tmp_path / "training_log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed there
    log.on_train_begin(arguments, TrainerState(global_step=2), TrainerControl())
    assert _lines(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
    log.on_train_begin(arguments, TrainerState(global_step=0), TrainerControl())
    assert _lines(tmp_path) == []


def test_a_resumed_run_in_another_folder_has_a_log_of_its_own(tmp_path):
    arguments = SimpleNamespace(output_dir=str(tmp_path / "other"))
    JsonLinesLog().on_train_begin(arguments, TrainerState(global_step=2), TrainerControl())
    assert _lines(tmp_path / "other") == []


def test_only_the_main_process_writes(tmp_path):
    arguments, state = SimpleNamespace(output_dir=str(tmp_path)), TrainerState(is_world_process_zero=False)
    JsonLinesLog().on_train_begin(arguments, state, TrainerControl())
    JsonLinesLog().on_log(arguments, state, TrainerControl(), logs={"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_tells_the_step_and_the_number_of_steps():
    seen = []
    callback = OnStep(lambda step, total: seen.append((step, total)))
    callback.on_step_end(None, TrainerState(global_step=3, max_steps=20), TrainerControl())
    assert seen == [(3, 20)]


class _Epochs:
    """Data that notes what it is told."""

    def __init__(self):
        self.told = []

    def set_epoch(self, epoch):
        self.told.append(epoch)


@pytest.mark.parametrize(("epoch", "told"), [(None, 0), (0.0, 0), (1.0, 1), (2.75, 2)])
def test_the_training_data_is_told_the_epoch_also_when_it_is_resumed_within_one(epoch, told):
    state, data = TrainerState(epoch=epoch), _Epochs()
    for dataset in (data, [1, 2]):
        loader = SimpleNamespace(dataset=dataset)
        SetDatasetEpoch().on_epoch_begin(BF16, state, TrainerControl(), train_dataloader=loader)
    assert data.told == [told]
