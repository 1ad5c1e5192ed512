"""Every family loads, with RadTower installed, from a folder, from a Hub and from its cache, in all ways."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.utils import is_flash_attn_2_available

from hub_contract.loading_probe import HUB_WAYS, PLACES, WAYS, adapted, load, numbers
from hub_contract.stock_models import AUTO_CLASSES, build, build_processor
from local_hub import run_local_hub
from radtower.hub_cards.export import export_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CLASSES = {
    "image": ["CT3DVisionForImageClassification", "CT3DImageProcessor"],
    "text": ["LLMBiEncoderForSequenceClassification", "TokenizersBackend"],
    "pair": ["MedCLIPModel", "MedCLIPProcessor"],
}
# Weights of each place differ, by this factor: what came from the wrong place has other numbers.
FACTORS = {"as it is": 1.0, "revision": 0.5, "subfolder": 1.5}
LIMITS = {"bfloat16": 0.05}
LAST_BITS = 1e-5


def _built(kind, place="as it is"):
    model = build(kind).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(FACTORS[place])
    return model


def _expected(kind, way):
    return numbers(kind, _built(kind, way if way in FACTORS else "as it is"))


def _export(kind, place, folder):
    trained = folder.with_name(f"{folder.name}-trained")
    _built(kind, place).save_pretrained(trained, max_shard_size="4KB")
    build_processor(kind).save_pretrained(trained)
    return export_model(trained, folder)


def _save_adapter(kind, folder):
    """An adapter that changes what its model says; return the numbers of both together."""
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(_built(kind), lora)
    model.save_pretrained(folder)
    return numbers(kind, model.merge_and_unload())


def _difference(found, expected):
    assert len(found) == len(expected)
    return max(abs(one - other) for one, other in zip(found, expected, strict=True))


def _assert_loaded(kind, way, row):
    assert _difference(row["numbers"], _expected(kind, way)) <= LIMITS.get(way, LAST_BITS), (kind, way)
    assert row["classes"] == CLASSES[kind]
    assert row["is_same_processor"]
    assert row["dtype"] == f"torch.{'bfloat16' if way == 'bfloat16' else 'float32'}"


@pytest.mark.parametrize("kind", AUTO_CLASSES)
def test_weights_in_shards_load_from_a_folder_in_every_way(kind, tmp_path):
    folder = _export(kind, "as it is", tmp_path / kind)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    _export(kind, "subfolder", tmp_path / "inside").rename(folder / "inside")
    for way in WAYS:
        if way != "revision":  # a folder has none
            row = load(kind, str(folder), way)
            _assert_loaded(kind, way, row)
            if "attn_implementation" in WAYS[way]:  # it reaches every part, both towers and the decoder
                assert row["attention"] == [way]


@pytest.mark.parametrize("kind", AUTO_CLASSES)
def test_attention_of_other_libraries_is_refused_only_where_the_library_is_missing(kind, tmp_path):
    folder = str(_export(kind, "as it is", tmp_path / kind))
    auto_model, _ = AUTO_CLASSES[kind]
    model = auto_model.from_pretrained(folder, attn_implementation="flex_attention")
    assert model.config._attn_implementation == "flex_attention"
    if not is_flash_attn_2_available():
        with pytest.raises(ImportError, match="package"):
            auto_model.from_pretrained(folder, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("kind", ["text", "pair"])
def test_adapters_load_from_a_folder_with_peft_and_with_transformers(kind, tmp_path):
    right = _save_adapter(kind, tmp_path / "adapter")
    assert _difference(right, _expected(kind, "as it is")) > 100 * LAST_BITS
    folder = str(_export(kind, "as it is", tmp_path / kind))
    for has_peft_model in (True, False):
        found = adapted(kind, folder, str(tmp_path / "adapter"), has_peft_model=has_peft_model)
        assert _difference(found, right) <= LAST_BITS


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _publish(hub, kind, folder):
    repo = hub.make_repo("models", f"tester/{kind}", is_private=True)
    older = repo.add("older", _files(_export(kind, "revision", folder / "revision" / kind)))
    repo.tags["v1"] = older.oid
    inside = _files(_export(kind, "subfolder", folder / "inside" / kind))
    root = _files(_export(kind, "as it is", folder / kind))
    repo.add("newer", root | {f"inside/{name}": content for name, content in inside.items()})


def _environment(hub, home):
    variables = hub.environment(home)
    paths = [str(Path(__file__).parents[1]), *filter(None, [variables.get("PYTHONPATH")])]
    return variables | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def _load_on_and_offline(kinds, hub_context, publish, folder):
    """Rows of the probe; the Hub is shut before it goes offline."""
    log = folder / "log"
    with hub_context as hub, log.open("w") as errors:
        publish(hub)
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("loading_probe.py")), *kinds],
            env=_environment(hub, folder / "home"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        lines = []
        for line in process.stdout:
            if line == "online done\n":
                break
            lines.append(line)
    with process:
        rest, _ = process.communicate("\n", timeout=200)
    assert process.returncode == 0, log.read_text()[-3000:]
    rows = [json.loads(line[6:]) for line in [*lines, *rest.splitlines()] if line.startswith("found ")]
    return {tuple(row["key"]): row for row in rows}


@pytest.mark.parametrize("kinds", [["pair"], pytest.param(["image", "text"], marks=pytest.mark.slow)])
def test_a_hub_gives_what_its_revisions_and_folders_hold_and_its_cache_the_same_offline(kinds, tmp_path):
    adapters = {}

    def publish(hub):
        for kind in kinds:
            _publish(hub, kind, tmp_path)
        if "text" in kinds:
            adapters["text"] = _save_adapter("text", tmp_path / "adapter")
            repo = hub.make_repo("models", "tester/text-adapter", is_private=True)
            repo.add("adapter", _files(tmp_path / "adapter"))

    found = _load_on_and_offline(kinds, run_local_hub(), publish, tmp_path)

    for where in PLACES:
        for kind in kinds:
            for way in HUB_WAYS:
                _assert_loaded(kind, way, found[kind, way, where])
        for kind, right in adapters.items():
            for way in ("PeftModel", "load_adapter"):
                assert _difference(found[kind, way, where]["numbers"], right) <= LAST_BITS


@pytest.mark.parametrize("kind", AUTO_CLASSES)
def test_numbers_of_the_places_differ_so_that_a_wrong_one_shows(kind):
    for place in ("revision", "subfolder"):
        assert _difference(_expected(kind, "as it is"), _expected(kind, place)) > 10 * LAST_BITS
