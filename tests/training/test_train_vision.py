import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, TrainerCallback

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.data.datasets import StudyTargets
from radtower.data.preprocessing.provenance import processor_hash
from radtower.data.volume_cache import open_volume_cache
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification, CT3DVisionModel
from radtower.training.callbacks import OnStep
from radtower.training.train_vision import loss_of, train_vision


@pytest.fixture
def run(vision_run):
    return vision_run


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


@pytest.fixture
def labeled(study_folder, run, tmp_path):
    """A manifest with labels of its own and a validation split; everything else as in ``run``."""
    frame = pd.read_csv(study_folder / "manifest.csv")
    frame["image_path"] = [str(study_folder / image) for image in frame["image_path"]]
    frame["lung_nodule"] = [0, 1, 0, 0, None, 1, 0, 1]
    frame["Pleural effusion"] = [0, 0, 1, 1, 0.25, 0, 1, 1]
    frame.loc[6:, "split"] = "validation"
    del frame["report"]  # what has labels needs none
    frame.to_csv(tmp_path / "labeled.csv", index=False)
    (tmp_path / "pair.yaml").write_text(
        "name: pair\nfindings:\n"
        "  - {key: lung_nodule, name: Lung nodule, definition: d, prompts: [p]}\n"
        "  - {key: pleural_effusion, name: Pleural effusion, definition: d, prompts: [p]}\n"
    )
    return replace(
        run, manifest=str(tmp_path / "labeled.csv"), labels=None, findings=str(tmp_path / "pair.yaml")
    )


def test_the_labels_of_the_manifest_train_and_its_validation_split_is_measured(labeled, make_arguments):
    arguments = make_arguments(
        max_steps=1,
        per_device_train_batch_size=5,
        learning_rate=0.0,
        eval_strategy="steps",
        eval_steps=1,
        label_names=["labels"],
    )
    folder = train_vision(labeled, arguments)
    lines = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    cache = open_volume_cache(labeled.cache)
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "lung_nodule", 1: "pleural_effusion"}
    pixels = torch.stack([cache[f"study-{number}"] for number in (0, 1, 3, 4, 5)])
    labels = torch.tensor([[0.0, 0], [1, 0], [0, 1], [-100, 0.25], [1, 0]])
    assert lines[0]["loss"] == pytest.approx(model.train()(pixels, labels=labels).loss.item(), abs=1e-4)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        validation = model(
            torch.stack([cache["study-6"], cache["study-7"]]), labels=torch.tensor([[0.0, 1], [1, 1]])
        )
    measured = next(line for line in lines if "eval_loss" in line)
    assert measured["eval_loss"] == pytest.approx(validation.loss.item(), abs=1e-4)
    assert measured["eval_num_findings"] == 1.0
    assert measured["eval_macro_auroc"] == float(validation.logits[1, 0] > validation.logits[0, 0])


def _rewrite(run, **columns):
    frame = pd.read_csv(run.manifest, dtype=str, keep_default_na=False)
    frame.assign(**columns).to_csv(run.manifest, index=False)


def test_minus_one_never_reaches_the_loss(labeled, make_arguments):
    _rewrite(labeled, lung_nodule=["0", "1", "0", "-1", "0", "1", "0", "1"])
    with pytest.raises(ValueError, match=r"got \[-1\.0\]"):
        train_vision(labeled, make_arguments())


def test_a_patient_in_training_and_validation_is_refused(labeled, make_arguments):
    _rewrite(labeled, patient_id=["p0", "p1", "p2", "p3", "p4", "p5", "p0", "p7"])
    with pytest.raises(ValueError, match="a patient must be in one split, got 1"):
        train_vision(labeled, make_arguments())


def test_a_split_without_a_label_is_refused(labeled, make_arguments):
    _rewrite(labeled, **{"lung_nodule": "", "Pleural effusion": ""})
    with pytest.raises(ValueError, match="the train split must have a known label, got none for 5 volumes"):
        train_vision(labeled, make_arguments())


def test_a_validation_split_that_has_no_auroc_is_refused(labeled, make_arguments):
    _rewrite(labeled, lung_nodule=["0", "1", "0", "0", "0", "1", "0", ""])
    with pytest.raises(ValueError, match="both classes of some finding, got one class of each in 2 volumes"):
        train_vision(labeled, make_arguments(eval_strategy="steps", eval_steps=1))


def test_evaluation_needs_a_validation_split(run, make_arguments):
    with pytest.raises(ValueError, match="one of test, train in this manifest, got 'validation'"):
        train_vision(run, make_arguments(eval_strategy="steps", eval_steps=1))


def test_the_balanced_loss_weighs_by_the_labels_that_are_known():
    values = np.array([[1, 0], [0, 0.5], [0, 1], [0, -100]], dtype=np.float32)
    loss = loss_of("balanced_bce", StudyTargets(("a", "b"), values))
    # Finding a: 1 present, 3 absent. Finding b: 1.5 present, 1.5 absent.
    logits = torch.zeros(1, 2)
    assert loss(logits, torch.ones(1, 2)).item() == pytest.approx((3 + 1) / 2 * np.log(2))
    assert loss(logits, torch.zeros(1, 2)).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("column", [[1, 1, -100], [0, 0, -100], [-100, -100, -100]])
def test_a_finding_with_one_class_cannot_be_balanced(column):
    values = np.array([[0, value] for value in column], dtype=np.float32)
    values[0, 0] = 1
    with pytest.raises(ValueError, match=r"absent in the train split for balanced_bce, got \['b'\]"):
        loss_of("balanced_bce", StudyTargets(("a", "b"), values))


def test_the_loss_of_the_run_is_the_loss_of_the_training(labeled, make_arguments):
    settings = {"max_steps": 1, "per_device_train_batch_size": 5, "learning_rate": 0.0}
    logged = {}
    for name in ("bce", "balanced_bce", "asymmetric"):
        folder = train_vision(replace(labeled, loss=name), make_arguments(name, **settings))
        logged[name] = json.loads((folder / "training_log.jsonl").read_text().splitlines()[0])["loss"]
    assert loss_of("bce", StudyTargets((), np.zeros((1, 0)))) is None
    assert len({round(value, 4) for value in logged.values()}) == 3


def test_a_run_goes_on_from_its_last_checkpoint(labeled, make_arguments):
    labeled = replace(
        labeled,
        ema_decay=0.5,
        layer_lr_decay=0.8,
        should_augment=True,
        max_noise_hu=100.0,
        flip_probability=0.5,
    )
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 3}
    whole = train_vision(labeled, make_arguments("whole", **settings))
    killed = make_arguments("killed", **settings)
    train_vision(labeled, killed)
    (whole.parent / "killed" / "model.safetensors").unlink()
    for path in (whole.parent / "killed").glob("checkpoint-[23]/trainer_state.json"):
        path.unlink()
    again = train_vision(labeled, make_arguments("killed", **settings, resume_from_checkpoint=True))
    left, right = (CT3DVisionForImageClassification.from_pretrained(folder) for folder in (whole, again))
    for key, value in left.state_dict().items():
        assert torch.equal(value, right.state_dict()[key]), key


def test_the_model_folder_names_no_path_of_this_machine(labeled, make_arguments, tmp_path):
    folder = train_vision(labeled, make_arguments())
    again = AutoModelForImageClassification.from_pretrained(folder)
    again.save_pretrained(folder)
    for name in ("config.json", "preprocessor_config.json"):
        assert str(tmp_path.parent.parent) not in (folder / name).read_text()
        assert "_name_or_path" not in json.loads((folder / name).read_text())


def _video_weights(path, width=6):
    """Two stages of one block, by torchvision's names, with a stem for RGB and a head."""
    names = {"vision_model.": "", "stages.0.0": "layer1.0", "stages.1.0": "layer2.0"}
    names |= {f".conv{n}.": f".conv{n}.0." for n in (1, 2)} | {f".norm{n}.": f".conv{n}.1." for n in (1, 2)}
    config = CT3DVisionConfig(hidden_sizes=[width, 8], layers=[1, 1], num_labels=2, image_size=[8, 8, 8])
    torch.manual_seed(9)
    weights = {}
    for name, value in CT3DVisionForImageClassification(config).state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name.replace("classifier", "fc")] = value
    weights["stem.0.weight"] = torch.rand(width, 3, 3, 7, 7)
    weights["stem.1.weight"] = torch.rand(width)
    save_file(weights, path)
    return weights


@pytest.mark.parametrize("stem", ["fold", "replace"])
def test_a_run_starts_from_the_weights_of_a_video_network(labeled, make_arguments, tmp_path, stem):
    weights = _video_weights(tmp_path / "video.safetensors")
    run = replace(
        labeled,
        hidden_sizes=None,
        pretrained=str(tmp_path / "video.safetensors"),
        pretrained_stem=stem,
    )
    folder = train_vision(run, make_arguments(max_steps=1, learning_rate=0.0))
    model = CT3DVisionForImageClassification.from_pretrained(folder)
    assert (model.config.hidden_sizes, model.config.layers) == ([6, 8], [1, 1])
    assert list(model.config.stem_kernel_size) == ([3, 7, 7] if stem == "fold" else [2, 2, 2])
    state = model.state_dict()
    assert torch.equal(state["vision_model.stages.1.0.conv2.weight"], weights["layer2.0.conv2.0.weight"])
    assert torch.equal(state["vision_model.stem.1.weight"], weights["stem.1.weight"])
    assert state["classifier.weight"].shape == (2, 8)


def test_pretrained_weights_of_another_shape_are_refused(labeled, make_arguments, tmp_path):
    _video_weights(tmp_path / "video.safetensors")
    run = replace(labeled, pretrained=str(tmp_path / "video.safetensors"))  # whose hidden_sizes are (4, 8)
    with pytest.raises(RuntimeError, match="size mismatch"):
        train_vision(run, make_arguments())


def test_pretrained_weights_in_a_pickle_are_refused(labeled, make_arguments):
    with pytest.raises(ValueError, match=r"must be a .safetensors file, got r3d_18.pth"):
        train_vision(replace(labeled, pretrained="r3d_18.pth"), make_arguments())


@pytest.mark.parametrize(
    ("field", "value"), [("block_type", "mc3"), ("pooling", "gated"), ("stem_kernel_size", (4, 4, 4))]
)
def test_the_shape_of_the_run_is_that_of_the_network(labeled, make_arguments, field, value):
    folder = train_vision(replace(labeled, **{field: value}), make_arguments(max_steps=1))
    found = getattr(CT3DVisionForImageClassification.from_pretrained(folder).config, field)
    assert found == (list(value) if isinstance(value, tuple) else value)


def test_an_augmented_run_varies_the_training_volumes_reproducibly_per_epoch(labeled, make_arguments):
    # With a learning rate of 0 and one batch per epoch the losses differ only by what the volumes are.
    settings = {"max_steps": 2, "per_device_train_batch_size": 5, "learning_rate": 0.0}
    noisy = replace(labeled, should_augment=True, max_noise_hu=300.0)
    losses = {}
    for name, run in (("plain", labeled), ("one", noisy), ("again", noisy)):
        folder = train_vision(run, make_arguments(name, **settings))
        lines = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if "loss" in line]
    assert losses["plain"][0] == pytest.approx(losses["plain"][1], abs=1e-6)
    assert abs(losses["one"][0] - losses["plain"][0]) > 1e-4
    assert abs(losses["one"][0] - losses["one"][1]) > 1e-4
    assert losses["again"] == losses["one"]


def test_training_in_bf16_keeps_float32_weights(labeled, make_arguments):
    # One stage: for maps of a few voxels, the bf16 weight gradients of PyTorch 2.13 on a CPU read memory that
    # was never written, and are inf now and then.
    run = replace(labeled, loss="balanced_bce", ema_decay=0.5, hidden_sizes=(4,), layers=(1,))
    settings = {"max_steps": 1, "per_device_train_batch_size": 5, "learning_rate": 0.0}
    losses = []
    for name, is_half in (("full", False), ("half", True)):
        folder = train_vision(run, make_arguments(name, **settings, bf16=is_half))
        losses.append(json.loads((folder / "training_log.jsonl").read_text().splitlines()[0])["loss"])
        state = CT3DVisionForImageClassification.from_pretrained(folder).state_dict()
        assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_augmentation_has_the_seed_and_the_strengths_of_the_run(labeled, make_arguments):
    seen = []

    class Look(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            seen.append(kwargs["train_dataloader"].dataset.augmentation)

    strengths = {"max_rotation_degrees": 3.0, "max_scaling": 0.1, "max_window_shift_hu": 20.0}
    strengths |= {"max_noise_hu": 5.0, "flip_probability": 0.25}
    run = replace(labeled, should_augment=True, **strengths)
    train_vision(run, make_arguments(max_steps=1, seed=17), [Look()])
    assert seen[0].seed == 17
    assert {name: getattr(seen[0], name) for name in strengths} == strengths
    train_vision(labeled, make_arguments("plain", max_steps=1), [Look()])
    assert seen[1] is None
