import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_mntp import LLMBiEncoderForMaskedNTP
from radtower.modeling.llm_sources.modeling_llm_lora import merge_adapter
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
TEXTS = ["There is no effusion.", "nodule", "There is a small nodule in the left upper lobe."]
CLOSE = {"atol": 1e-6, "rtol": 1e-6}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PLAIN = {"r": 4, "lora_alpha": 12, "lora_dropout": 0.3, "target_modules": PROJECTIONS}


def _train(model, **settings):
    """Wrap a model, and give both factors values as training would."""
    adapted = get_peft_model(model, LoraConfig(**PLAIN | settings))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


@pytest.fixture
def write_adapter(tiny_llm_folder, tmp_path):
    """Save an adapter of the tiny language model; gives its folder and the model it was trained on."""

    def write(name="adapter", auto=AutoModelForCausalLM, base=None, **settings):
        adapted = _train(auto.from_pretrained(base or tiny_llm_folder), **settings)
        adapted.save_pretrained(tmp_path / name)
        return tmp_path / name, adapted

    return write


def _states(model, encoder):
    """Token states of the texts by a model of transformers, causal as the tiny one is."""
    return [
        model(**encoder.tokenizer(text, return_tensors="pt"), output_hidden_states=True) for text in TEXTS
    ]


def _encoder(*args, **fields):
    return LLMBiEncoder.from_llm(*args, bidirectional=False, pooling="mean", **fields)


@torch.no_grad()
@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModel])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"v_proj": 3}},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1], "layers_pattern": ["layers"]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": r".*layers\.0\..*(q_proj|up_proj)"},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        {"init_lora_weights": "gaussian"},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_a_merged_adapter_equals_the_unmerged_one_and_the_merge_of_peft(write_adapter, auto, settings):
    folder, adapted = write_adapter(auto=auto, **settings)
    _assert_equal(folder, adapted, is_wrapped=auto is AutoModelForCausalLM)


@torch.no_grad()
def test_layers_are_counted_without_a_pattern_too(write_adapter):
    # Below a language-model head only: on a bare decoder peft finds no layer then.
    folder, adapted = write_adapter(target_modules=["q_proj", "up_proj"], layers_to_transform=[1])
    assert len(load_file(folder / "adapter_model.safetensors")) == 4
    _assert_equal(folder, adapted, is_wrapped=True)


def _assert_equal(folder, adapted, is_wrapped):
    # In float64, where only a different computation makes a difference.
    encoder = _encoder(folder, dtype=torch.float64)
    adapted.double()
    for text, unmerged in zip(TEXTS, _states(adapted, encoder), strict=True):
        state = encoder(**encoder.tokenize(text)).last_hidden_state
        torch.testing.assert_close(state, unmerged.hidden_states[-1], atol=1e-10, rtol=1e-10)
    encoder = _encoder(folder)
    merged = adapted.float().merge_and_unload()
    decoder = merged.model if is_wrapped else merged
    for name, weight in decoder.state_dict().items():
        torch.testing.assert_close(encoder.model.state_dict()[name], weight, **CLOSE)


@torch.no_grad()
def test_a_merged_adapter_changes_the_vectors_and_brings_the_tokenizer_of_its_base(
    write_adapter, tiny_llm_folder
):
    folder, _ = write_adapter()
    base, encoder = _encoder(tiny_llm_folder), _encoder(folder)
    assert (encoder.encode_text(TEXTS) - base.encode_text(TEXTS)).abs().max() > 0.1
    assert encoder.tokenizer("There is").input_ids == base.tokenizer("There is").input_ids


@torch.no_grad()
def test_a_tokenizer_beside_the_adapter_is_preferred(write_adapter, tiny_tokenizer):
    folder, _ = write_adapter()
    tiny_tokenizer.add_tokens(["nodulation"])
    tiny_tokenizer.save_pretrained(folder)
    assert len(_encoder(folder).tokenizer("nodulation").input_ids) == 2


@torch.no_grad()
def test_adapters_are_chained_in_order(write_adapter, tiny_llm_folder, tmp_path):
    first, adapted = write_adapter("mntp")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    shutil.copy(tiny_llm_folder / "tokenizer.json", tmp_path / "merged")
    shutil.copy(tiny_llm_folder / "tokenizer_config.json", tmp_path / "merged")
    second, _ = write_adapter("supervised", base=tmp_path / "merged")
    expected = _encoder(second).encode_text(TEXTS)
    # As LLM2Vec publishes them: the second adapter names the base, not the merged model it was trained on.
    for path, adapters in ((tiny_llm_folder, [first, second]), (first, [second])):
        torch.testing.assert_close(_encoder(path, adapters=adapters).encode_text(TEXTS), expected, **CLOSE)
    alone = _encoder(tiny_llm_folder, adapters=[second]).encode_text(TEXTS)
    assert (alone - expected).abs().max() > 0.05


@torch.no_grad()
def test_lower_layers_are_cut_after_merging(write_adapter):
    folder, _ = write_adapter()
    cut, whole = _encoder(folder, num_hidden_layers=1), _encoder(folder)
    assert len(cut.model.layers) == 1
    for name, weight in cut.model.state_dict().items():
        assert torch.equal(weight, whole.model.state_dict()[name])


@torch.no_grad()
def test_an_adapter_of_the_public_layout_keeps_its_head(write_public_folder, public_encoder, tmp_path):
    public = write_public_folder()
    adapted = _train(LLMBiEncoder.from_llm(public))
    expected = adapted.encode_text(TEXTS)
    adapted.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../public"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    encoder = LLMBiEncoder.from_llm(tmp_path / "adapter")
    torch.testing.assert_close(encoder.encode_text(TEXTS), expected, **CLOSE)
    assert (expected - public_encoder.encode_text(TEXTS)).abs().max() > 0.05


@torch.no_grad()
def test_half_precision_is_merged_in_float32_and_rounded_once(write_adapter, tiny_llm_folder):
    folder, _ = write_adapter()
    base, merged = (
        _encoder(path, dtype=torch.bfloat16).model.layers[0].mlp.up_proj.weight
        for path in (tiny_llm_folder, folder)
    )
    factors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    update = 3 * factors[name.format("B")] @ factors[name.format("A")]
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, (base.float() + update).bfloat16())


def _set(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("place", ["beside the adapter", "where the program runs"])
def test_a_relative_base_is_found(write_adapter, tiny_llm_folder, tmp_path, monkeypatch, place):
    folder, _ = write_adapter()
    root = folder if place == "beside the adapter" else tmp_path / "cwd"
    shutil.copytree(tiny_llm_folder, root / "base" / "llm")
    (tmp_path / "cwd").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "cwd")
    _set(folder, base_model_name_or_path="base/llm")
    assert torch.equal(_encoder(folder).model.norm.weight, torch.ones(32))


def test_two_folders_of_one_relative_name_are_refused(write_adapter, tiny_llm_folder, tmp_path, monkeypatch):
    folder, _ = write_adapter()
    shutil.copytree(tiny_llm_folder, folder / "llm")
    shutil.copytree(tiny_llm_folder, tmp_path / "cwd" / "llm")
    monkeypatch.chdir(tmp_path / "cwd")
    with pytest.raises(ValueError, match=r"got 'llm', which is both .*adapter/llm and .*cwd/llm"):
        _encoder(_set(folder, base_model_name_or_path="llm"))


@pytest.mark.parametrize("name", ["/home/somebody/llm", "../llm", "~/no_such_llm", "runs/today/llm"])
def test_a_base_that_is_not_there_is_named(write_adapter, name):
    folder, _ = write_adapter()
    with pytest.raises(FileNotFoundError, match=f"base of the adapter must exist, got '{name}' in "):
        _encoder(_set(folder, base_model_name_or_path=name))


def test_a_base_that_was_moved_is_given_by_hand(write_adapter, tiny_llm_folder):
    folder, _ = write_adapter()
    expected = _encoder(folder).state_dict()
    _set(folder, base_model_name_or_path="/home/somebody/llm")
    moved = _encoder(tiny_llm_folder, adapters=[folder]).state_dict()
    assert all(torch.equal(moved[name], expected[name]) for name in expected)


def test_refuses_an_adapter_that_names_no_base(write_adapter):
    folder, _ = write_adapter()
    with pytest.raises(ValueError, match="must name its base model, got None"):
        _encoder(_set(folder, base_model_name_or_path=None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "got use_dora True"),
        ({"fan_in_fan_out": True}, "got fan_in_fan_out True"),
        ({"bias": "lora_only"}, "got bias 'lora_only'"),
        ({"modules_to_save": ["norm"]}, r"got modules_to_save \['norm'\]"),
        ({"layer_replication": [[0, 1]]}, r"got layer_replication \[\[0, 1\]\]"),
        ({"init_lora_weights": "pissa"}, "got init_lora_weights 'pissa'"),
        ({"use_qalora": True}, "got use_qalora True"),
        ({"something_of_tomorrow": 3}, "got something_of_tomorrow 3"),
        ({"peft_type": "IA3"}, "must be LoRA, got peft_type 'IA3'"),
    ],
)
def test_refuses_what_is_not_plain_lora(write_adapter, settings, message):
    folder, _ = write_adapter()
    with pytest.raises(ValueError, match=message):
        _encoder(_set(folder, **settings))


def test_knows_every_setting_that_the_library_writes(write_adapter):
    # A plain adapter of the installed release is accepted; what is new there must be looked at.
    folder, _ = write_adapter()
    assert json.loads((folder / "adapter_config.json").read_text())["peft_version"] == peft.__version__
    assert isinstance(_encoder(folder), LLMBiEncoder)


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


def _change(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(FIRST),
            r"14 layers, got 1 missing, such as model\.layers\.0\.mlp\.down_proj\.lora_A",
        ),
        (
            lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}),
            r"got 1 unused, such as lm_head\.lora_A",
        ),
        (
            lambda t: t.update({FIRST.replace("lora_A.weight", "lora_magnitude_vector"): torch.zeros(3)}),
            "got 1 unused, such as .*lora_magnitude_vector",
        ),
        (
            lambda t: t.update({FIRST: torch.zeros(5, 48)}),
            r"got \(\(5, 48\), \(32, 4\)\) for .*down_proj of shape \(32, 48\) and rank 4",
        ),
        (lambda t: t.update({FIRST: torch.zeros(4, 47)}), r"got \(\(4, 47\), \(32, 4\)\)"),
    ],
    ids=["missing", "head", "magnitude", "rank", "width"],
)
def test_refuses_tensors_that_are_not_exactly_those_of_its_layers(write_adapter, change, message):
    folder, _ = write_adapter()
    with pytest.raises(ValueError, match=message):
        _encoder(_change(folder, change))


def test_refuses_an_adapter_of_a_deeper_model(write_adapter, tiny_llm_folder):
    folder, _ = write_adapter()
    decoder = AutoModel.from_pretrained(tiny_llm_folder)
    decoder.layers = decoder.layers[:1]
    with pytest.raises(ValueError, match=r"7 layers, got 14 unused, such as model\.layers\.1"):
        merge_adapter(decoder, folder)


def test_refuses_an_adapter_that_names_no_layer(write_adapter):
    folder, _ = write_adapter()
    with pytest.raises(ValueError, match="0 layers, got 28 unused"):
        _encoder(_set(folder, target_modules=["query"]))
    with pytest.raises(ValueError, match="0 layers, got none"):
        _encoder(_change(_set(folder, target_modules=[]), lambda tensors: tensors.clear()))


def test_refuses_an_adapter_without_weights_and_a_pickled_one(write_adapter):
    folder, _ = write_adapter()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold adapter_model\.safetensors, got .*adapter"):
        _encoder(folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"got .*adapter_model\.bin, a pickle.*'adapter_model\.safetensors'"):
        _encoder(folder)


def test_refuses_a_folder_that_is_both_and_a_model_for_an_adapter(write_adapter, tiny_llm_folder):
    folder, _ = write_adapter()
    with pytest.raises(ValueError, match=r"adapters must be LoRA folders, got .*tiny_llm"):
        _encoder(tiny_llm_folder, adapters=[tiny_llm_folder])
    shutil.copy(tiny_llm_folder / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"model or an adapter, got both in .*adapter"):
        _encoder(folder)


@pytest.mark.parametrize("kind", [str, Path])
def test_one_adapter_needs_no_list(write_adapter, tiny_llm_folder, kind):
    folder, _ = write_adapter()
    expected = _encoder(tiny_llm_folder, adapters=[folder]).encode(TEXTS)
    assert torch.equal(_encoder(tiny_llm_folder, adapters=kind(folder)).encode(TEXTS), expected)
    assert (_encoder(tiny_llm_folder).encode(TEXTS) - expected).abs().max() > 0.01


@pytest.mark.parametrize(
    "head", [LLMBiEncoder, LLMBiEncoderForMaskedNTP, LLMBiEncoderForSequenceClassification]
)
def test_an_adapter_is_not_saved_where_its_base_would_be_lost(tiny_llm_folder, tmp_path, head):
    model = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean")
    if head is not LLMBiEncoder:
        model = head(model.config)
    model.save_pretrained(tmp_path / "base")
    adapter = LoraConfig(**PLAIN)
    model.add_adapter(adapter)
    with pytest.raises(ValueError, match=rf"got one in memory only \({head.__name__}\).*Save it before"):
        model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    loaded = head.from_pretrained(tmp_path / "base")
    loaded.add_adapter(adapter)
    loaded.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
