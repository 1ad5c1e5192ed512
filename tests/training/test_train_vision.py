import json

import pytest
import torch
import yaml
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from radtower.data.volume_cache import open_volume_cache, processor_hash
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification, CT3DVisionModel
from radtower.training.arguments import VisionRun
from radtower.training.callbacks import OnStep
from radtower.training.train_vision import train_vision


@pytest.fixture
def run(study_folder):
    return VisionRun(
        manifest=str(study_folder / "manifest.csv"),
        labels=str(study_folder / "labels.parquet"),
        cache=str(study_folder / "cache"),
        hidden_sizes=(4, 8),
        layers=(1, 1),
    )


def test_saves_a_folder_that_the_auto_classes_load(run, make_arguments, tmp_path):
    steps = []
    folder = train_vision(run, make_arguments(), [OnStep(lambda *step: steps.append(step))])
    assert folder == tmp_path / "model"
    assert steps == [(1, 2), (2, 2)]
    classifier = AutoModelForImageClassification.from_pretrained(folder)
    assert isinstance(classifier, CT3DVisionForImageClassification)
    assert classifier.config.id2label == {0: "nodule", 1: "effusion"}
    assert classifier.config.label2id == {"nodule": 0, "effusion": 1}
    assert classifier.config.hidden_sizes == [4, 8]
    assert (classifier.config.num_channels, classifier.config.image_size) == (1, [8, 8, 8])
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor_hash(processor) == processor_hash(open_volume_cache(run.cache).image_processor)
    encoder, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(encoder, CT3DVisionModel)
    assert not report["missing_keys"]
    pixels = open_volume_cache(run.cache)["study-0"][None]
    with torch.no_grad():
        expected = classifier.eval().classifier(encoder.eval()(pixels).pooler_output)
        assert torch.equal(classifier(pixels).logits, expected)


def test_the_loss_is_that_of_the_labels_of_the_training_split(run, make_arguments, tmp_path):
    # One batch with every training study that could be read: 0, 1, 3, 4 and 5.
    arguments = make_arguments(max_steps=1, per_device_train_batch_size=5, learning_rate=0.0)
    folder = train_vision(run, arguments)
    logged = json.loads((folder / "training_log.jsonl").read_text().splitlines()[0])["loss"]
    model = AutoModelForImageClassification.from_pretrained(folder).train()
    cache = open_volume_cache(run.cache)
    pixels = torch.stack([cache[f"study-{number}"] for number in (0, 1, 3, 4, 5)])
    labels = torch.tensor(
        [[0.0, 0], [1, 0], [0, 1], [-100, 1], [1, 0]]
    )  # not mentioned is 0, uncertain masked
    assert logged == pytest.approx(model(pixels, labels=labels).loss.item(), abs=1e-4)


def test_training_moves_the_weights_and_records_the_run(run, make_arguments):
    still = train_vision(run, make_arguments("still", learning_rate=0.0))
    moved = train_vision(run, make_arguments("moved", learning_rate=0.01))
    before, after = (CT3DVisionForImageClassification.from_pretrained(folder) for folder in (still, moved))
    changed = [
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    ]
    assert changed == [name for name, _ in before.named_parameters()]
    record = yaml.safe_load((moved / "run.yaml").read_text())
    assert (record["kind"], record["training"]["learning_rate"]) == ("VisionRun", 0.01)


def test_the_seed_decides_everything(run, make_arguments):
    first, again, other = (
        CT3DVisionForImageClassification.from_pretrained(train_vision(run, make_arguments(name, seed=seed)))
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
