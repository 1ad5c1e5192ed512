"""The recipes of CT-RATE train end to end: only paths, sizes, lengths and the machine differ."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM, TrainerCallback

from radtower.data.volume_cache import build_volume_cache, open_volume_cache
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.modeling_pair_relation import jaccard_index
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.training.arguments import parse_recipe, read_recipe
from radtower.training.clip.clip_run import ClipRun
from radtower.training.runs import VisionRun
from radtower.training.train_medclip import train_medclip
from radtower.training.train_vision import train_vision

RECIPES = Path(__file__).parents[2] / "recipes"
MACHINE = {"bf16": False, "use_cpu": True, "dataloader_num_workers": 0, "disable_tqdm": True}
MAY_DIFFER = {
    *MACHINE,
    *("manifest", "cache", "labels", "vision", "text", "output_dir", "hidden_sizes", "layers"),
    *("max_steps", "save_steps", "per_device_train_batch_size", "per_device_eval_batch_size", "chunk_size"),
}
STUDIES = {  # of four distinct reports: present findings (nodule, effusion), -100 where uncertain
    "study-0": ("There is no nodule. There is no effusion.", (0.0, 0.0)),
    "study-1": ("There is a small nodule.", (1.0, 0.0)),
    "study-3": ("small effusion, no nodule", (0.0, 1.0)),
    "study-4": ("Possible nodule. Describe effusion.", (-100.0, 1.0)),
}


class Snapshots(TrainerCallback):
    """The weights before the first step, and after each."""

    def __init__(self):
        self.weights = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        self.weights.append({n: value.detach().clone() for n, value in kwargs["model"].state_dict().items()})


@pytest.fixture
def manifest(study_folder, tmp_path):
    """That of the study folder, with its test studies as validation."""
    frame = pd.read_csv(study_folder / "manifest.csv")
    frame["image_path"] = [str(study_folder / name) for name in frame["image_path"]]
    frame["split"] = frame["split"].replace("test", "validation")
    frame.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path / "manifest.csv"


@pytest.fixture
def paths(manifest, study_folder, vision_folder, text_folder):
    return {
        "manifest": str(manifest),
        "cache": str(study_folder / "cache"),
        "vision": str(vision_folder),
        "text": str(text_folder),
        "max_steps": 2,
        "per_device_train_batch_size": 3,
    }


@pytest.fixture
def train(tmp_path):
    """Run a recipe; gives the run, its training arguments, the model folder and the weights by step."""

    def start(name, run_class, run_training, **overrides):
        overrides |= {"output_dir": str(tmp_path / name), **MACHINE}
        assert set(overrides) <= MAY_DIFFER
        run, arguments = parse_recipe({**read_recipe(RECIPES / f"{name}.yaml"), **overrides}, run_class)
        snapshots = Snapshots()
        return run, arguments, run_training(run, arguments, [snapshots]), snapshots.weights

    return start


def _load(folder):
    model, report = MedCLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    return model.eval()


def _moved(weights):
    """Parameters that no longer are what they were; running statistics are not among them."""
    first, last = weights[0], weights[-1]
    return {name for name in first if "running" not in name and not torch.equal(first[name], last[name])}


def _batch(model, cache):
    """Four studies with distinct reports, as the dual tower reads them."""
    texts = model.processor(text=[report for report, _ in STUDIES.values()], return_tensors="pt")
    return {
        "pixel_values": torch.stack([open_volume_cache(cache)[name] for name in STUDIES]),
        "input_ids": texts["input_ids"],
        "attention_mask": texts["attention_mask"],
    }


def _loss_of(logits, targets):
    rows = -(targets * logits.log_softmax(dim=1)).sum(dim=1)
    return rows.mean()


def _finding_loss(model, output, labels):
    known = labels >= 0
    return 0.5 * sum(
        F.binary_cross_entropy_with_logits(model.finding_head(side)[known], labels[known])
        for side in (output.image_projection, output.text_projection)
    )


@pytest.fixture
def bert_folder(tmp_path):
    """What the command of the recipe makes of a folder like that of CXR-BERT-specialized."""
    source, folder = tmp_path / "source", tmp_path / "cxr_bert"
    source.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "there", "is", "no", "a", "nodule", "effusion"]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    weights = BertForMaskedLM(config).state_dict()
    weights |= {
        "bert.embeddings.position_ids": torch.arange(128)[None],
        "cls_projection_head.dense_to_hidden.weight": torch.zeros(16, 16),
    }
    torch.save(weights, source / "pytorch_model.bin")
    remote = {
        "AutoConfig": "configuration_cxrbert.CXRBertConfig",
        "AutoModel": "modeling_cxrbert.CXRBertModel",
    }
    described = config.to_dict() | {"model_type": "cxr-bert", "auto_map": remote, "projection_size": 128}
    (source / "config.json").write_text(json.dumps(described | {"architectures": ["CXRBertModel"]}))
    (source / "vocab.txt").write_text("\n".join(words))
    tokenizer = {
        "tokenizer_class": "CXRBertTokenizer",
        "auto_map": {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]},
    }
    (source / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    recipe = (RECIPES / "clip_ctrate.yaml").read_text()
    command = re.search(r'^# python -c "\n(.*?)^# "$', recipe, re.MULTILINE | re.DOTALL).group(1)
    command = re.sub(r"^# ", "", command, flags=re.MULTILINE)
    for name, path in (("microsoft/BiomedVLP-CXR-BERT-specialized", source), ("runs/cxr_bert", folder)):
        assert f"'{name}'" in command
        command = command.replace(f"'{name}'", repr(str(path)))
    exec(command, {})
    return folder, weights


def test_the_seed_aligns_a_supervised_tower_with_a_bert_by_raw_dot_products(train, paths, bert_folder):
    bert, given = bert_folder
    run, arguments, folder, weights = train(
        "clip_ctrate", ClipRun, train_medclip, **paths | {"text": str(bert)}
    )
    recipe = read_recipe(RECIPES / "clip_ctrate.yaml")
    assert (recipe["max_steps"], recipe["per_device_train_batch_size"]) == (30001, 10)
    assert (arguments.learning_rate, arguments.max_grad_norm, arguments.lr_scheduler_type) == (
        1e-5,
        0.5,
        "constant",
    )
    start, names = weights[0], {name for name in weights[0] if "running" not in name}
    supervised = CT3DVisionModel.from_pretrained(run.vision)
    for name, value in supervised.state_dict().items():
        assert torch.equal(start[f"vision_model.{name}"], value), name
    layer = "encoder.layer.1.output.dense.weight"
    assert torch.equal(start[f"text_model.{layer}"], given[f"bert.{layer}"])
    unmoved = names - _moved(weights)
    assert unmoved <= {
        "logit_scale.log_value",
        *(n for n in names if "num_batches" in n or "position_ids" in n),
    }
    assert "logit_scale.log_value" in unmoved
    model = _load(folder)
    assert (model.visual_projection.weight.shape, model.visual_projection.bias) == ((768, 16), None)
    assert (model.text_projection.weight.shape, model.text_projection.bias) == ((768, 16), None)
    assert model.finding_head is None
    assert (model.config.text_pooling, model.processor.max_length) == ("cls", 128)
    with torch.no_grad():
        batch = _batch(model, run.cache)
        output = model(**batch)
        first_states = model.text_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, 0]
        texts = model.text_projection(first_states)
    dots = output.image_projection @ texts.T
    expected = (_loss_of(dots, torch.eye(4)) + _loss_of(dots.T, torch.eye(4))) / 2
    torch.testing.assert_close(output.loss, expected)


def test_greenrfm_adds_half_of_the_finding_losses_through_one_head_that_trains(train, paths, study_folder):
    run, arguments, folder, weights = train(
        "clip_ctrate_greenrfm",
        ClipRun,
        train_medclip,
        **paths | {"labels": str(study_folder / "labels.parquet")},
    )
    assert (arguments.num_train_epochs, arguments.weight_decay, arguments.max_grad_norm) == (5, 0, 0.5)
    assert {"finding_head.weight", "finding_head.bias"} <= _moved(weights)
    for tower in ("vision_model.stages.1.", "text_model.model.layers.0.", "text_model.model.embed_tokens"):
        assert any(name.startswith(tower) for name in _moved(weights)), tower
    assert torch.equal(weights[0]["logit_scale.log_value"], weights[-1]["logit_scale.log_value"])
    model = _load(folder)
    assert list(model.config.findings) == ["nodule", "effusion"]
    assert model.finding_head.weight.shape == (2, 768)
    labels = torch.tensor([label for _, label in STUDIES.values()])
    with torch.no_grad():
        output = model(**_batch(model, run.cache), labels=labels)
        dots = output.image_projection @ output.text_projection.T
        expected = (_loss_of(dots, torch.eye(4)) + _loss_of(dots.T, torch.eye(4))) / 2
        torch.testing.assert_close(output.loss, expected + _finding_loss(model, output, labels))


@pytest.fixture
def windows_cache(manifest, study_folder, tmp_path):
    """The scans of the studies under the processor of the recipe, at a size for tests."""
    processor = CT3DImageProcessor.from_pretrained(
        RECIPES / "processor_ctrate_windows",
        spacing_mm=(3.0, 3.0, 3.0),
        size=(8, 8, 8),
        cache_size=(10, 10, 10),
    )
    frame = pd.read_csv(manifest)
    scans = {row.study_id: Path(row.image_path) for row in frame.itertuples()}
    build_volume_cache(scans, processor, tmp_path / "cache_windows")
    return tmp_path / "cache_windows"


def test_ours_reads_three_windows_in_chunks_with_several_positives_and_saves_the_average(
    train, paths, study_folder, windows_cache
):
    shared = {"labels": str(study_folder / "labels.parquet"), "cache": str(windows_cache)}
    given = {"manifest": paths["manifest"], **shared}
    _, _, vision, _ = train(
        "vision_ctrate_windows",
        VisionRun,
        train_vision,
        hidden_sizes=[8, 16],
        layers=[1, 1],
        max_steps=2,
        per_device_train_batch_size=2,
        **given,
    )
    run, arguments, folder, weights = train(
        "clip_ctrate_best",
        ClipRun,
        train_medclip,
        **paths
        | shared
        | {"vision": str(vision), "chunk_size": 2, "per_device_train_batch_size": 4, "max_steps": 3},
    )
    recipe = read_recipe(RECIPES / "clip_ctrate_best.yaml")
    assert recipe["per_device_train_batch_size"] > recipe["chunk_size"]
    assert (run.has_length_batches, run.should_augment) == (True, True)
    assert arguments.lr_scheduler_type == "cosine_with_min_lr"
    _check_windows(windows_cache, CT3DVisionModel.from_pretrained(vision))
    assert {"finding_head.weight", "logit_scale.log_value"} <= _moved(weights)
    model = _load(folder)
    assert model.processor.max_length == 512
    _check_average(model, weights)
    labels = torch.tensor([label for _, label in STUDIES.values()])
    with torch.no_grad():
        output = model(**_batch(model, run.cache), labels=labels)
        logits = model.logit_scale() * output.image_embeds @ output.text_embeds.T
        overlap = jaccard_index(labels, labels)
        assert overlap[2].tolist() == [
            0.0,
            0.0,
            1.0,
            1.0,
        ]  # two reports of effusion, one of them on nothing else
        targets = 0.5 * torch.eye(4) + 0.5 * overlap / overlap.sum(dim=1, keepdim=True)
        expected = (_loss_of(logits, targets) + _loss_of(logits.T, targets)) / 2
        torch.testing.assert_close(output.loss, expected + _finding_loss(model, output, labels))


def test_the_processor_of_three_windows_sees_more_slices_than_the_published_one_and_else_the_same():
    published, ours = (
        CT3DImageProcessor.from_pretrained(RECIPES / name).to_dict()
        for name in ("processor_ctrate", "processor_ctrate_windows")
    )
    changed = {name for name in published if published[name] != ours[name]}
    assert changed == {"size", "cache_size", "windows_hu"}
    assert (tuple(ours["size"]), tuple(ours["cache_size"])) == ((128, 192, 192), (144, 240, 240))


def _check_windows(folder, tower):
    """A channel per window of the recipe, and a tower with as many inputs."""
    cache, windows = open_volume_cache(folder), [(-1000.0, 200.0), (-160.0, 240.0), (130.0, 1500.0)]
    assert list(cache.image_processor.windows_hu) == windows
    assert tower.config.num_channels == 3
    volume_hu = cache.volume_hu("study-0")[1:9, 1:9, 1:9].float()
    for channel, (low, high) in enumerate(windows):
        expected = (2 * (volume_hu - low) / (high - low) - 1).clamp(-1, 1)
        torch.testing.assert_close(cache["study-0"][channel], expected)


def _check_average(model, weights):
    """The saved weights are the average over the steps, which is not where training ended."""
    average = {name: value.clone() for name, value in weights[0].items() if value.is_floating_point()}
    for step, current in enumerate(weights[1:], start=1):
        kept = min(0.999, (1 + step) / (10 + step))
        average = {name: kept * value + (1 - kept) * current[name] for name, value in average.items()}
    saved = model.state_dict()
    for name, value in average.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(saved["finding_head.weight"], weights[-1]["finding_head.weight"])
