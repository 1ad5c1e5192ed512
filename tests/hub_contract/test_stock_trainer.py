"""The Trainer of transformers, untouched, fine-tunes, evaluates, saves, resumes and pushes every family."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hub_contract.stock_models import AUTO_CLASSES, build_trainer
from local_hub import run_local_hub

# Of the predictions that compute_metrics gets, for 6 samples in batches of 4 and 2: a dual tower compares
# within a batch only, so that its first two have one column for each sample of the larger one.
SHAPES = {
    "image": [(6, 3)],
    "text": [(6, 3)],
    "pair": [(6, 4), (6, 4), (6, 8), (6, 8), (6, 3), (6, 3), (6, 8), (6, 8), (2,)],
}

CLASSES = {
    "image": ("CT3DVisionForImageClassification", "CT3DImageProcessor"),
    "text": ("LLMBiEncoderForSequenceClassification", "TokenizersBackend"),
    "pair": ("MedCLIPModel", "MedCLIPProcessor"),
}


def _losses(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def _assert_same_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("kind", AUTO_CLASSES)
def test_the_stock_trainer_goes_on_where_it_stopped(kind, tmp_path):
    whole = build_trainer(kind, tmp_path)
    whole.train()
    resumed = build_trainer(kind, tmp_path)

    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    assert list(_losses(whole)) == [1, 2, 3]
    assert _losses(resumed) == _losses(whole)
    _assert_same_weights(resumed.model, whole.model)


@pytest.mark.parametrize("kind", AUTO_CLASSES)
def test_the_stock_trainer_evaluates_with_a_loss_and_hands_the_predictions_to_compute_metrics(kind, tmp_path):
    seen = []

    def measure(prediction):
        seen.append(prediction)
        return {"positive": float(prediction.label_ids.sum())}

    trainer = build_trainer(kind, tmp_path, measure)

    scores = trainer.evaluate()

    batches = list(trainer.get_eval_dataloader())
    with torch.no_grad():
        outputs = [trainer.model.eval()(**batch) for batch in batches]
    losses = [float(out.loss) * len(batch["labels"]) for out, batch in zip(outputs, batches, strict=True)]
    assert scores["eval_loss"] == pytest.approx(sum(losses) / 6, rel=1e-5)
    assert scores["eval_positive"] == sum(float(batch["labels"].sum()) for batch in batches)
    arrays = seen[0].predictions if isinstance(seen[0].predictions, tuple) else (seen[0].predictions,)
    assert [array.shape for array in arrays] == SHAPES[kind]
    assert seen[0].label_ids.shape == (6, 3)
    name, row = ("image_embeds", 2) if kind == "pair" else ("logits", 0)
    assert torch.equal(torch.cat([getattr(out, name) for out in outputs]), torch.from_numpy(arrays[row]))


@pytest.mark.parametrize("kind", AUTO_CLASSES)
def test_what_the_stock_trainer_saves_loads_through_the_auto_classes(kind, tmp_path):
    trainer = build_trainer(kind, tmp_path)
    model_class, processor_class = AUTO_CLASSES[kind]

    trainer.save_model()

    loaded = model_class.from_pretrained(tmp_path)
    processor = processor_class.from_pretrained(tmp_path)
    assert (type(loaded).__name__, type(processor).__name__) == CLASSES[kind]
    _assert_same_weights(loaded, trainer.model)


@pytest.mark.slow
def test_the_stock_trainer_pushes_model_processor_and_card(tmp_path):
    with run_local_hub() as hub:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("stock_models.py")), str(tmp_path)],
            env=hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        repos = {kind: hub.repo("models", f"tester/{kind}") for kind in AUTO_CLASSES}
    found = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("found ")]
    assert found == [
        {
            "kind": kind,
            "class": CLASSES[kind][0],
            "processor": CLASSES[kind][1],
            "is_same": True,
        }
        for kind in AUTO_CLASSES
    ]
    for kind, repo in repos.items():
        assert repo.is_private
        assert {"config.json", "model.safetensors", "training_args.bin"} < repo.files.keys()
        card = repo.files["README.md"].decode()
        assert f"on the {kind} phantoms dataset." in card
        assert "- training_steps: 3" in card
        # The arguments of a run are pickled by transformers and do name its folder.
        telling = [name for name, content in repo.files.items() if str(tmp_path).encode() in content]
        assert telling == ["training_args.bin"]
