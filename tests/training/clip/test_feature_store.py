"""The real tiny tower is asked as seldom as possible, and never for vectors of another one."""

import errno
import fcntl
import json
import threading

import pytest
import torch
from safetensors.torch import load_file

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.processing_medclip import MedCLIPProcessor
from radtower.training.clip import feature_store
from radtower.training.clip.feature_store import TextFeatureStore
from radtower.training.clip.freezing import set_tower_mode
from radtower.training.clip.tower_lora import LoraSettings

TEXTS = ["no nodule", "There is a small effusion. no nodule", "present", "no nodule", "Describe the effusion"]


@pytest.fixture(params=["llm", "bert"])
def model(make_dual, request):
    model = make_dual("vit", request.param)
    model.text_model.requires_grad_(False)
    return model


@pytest.fixture
def llm(make_dual):
    model = make_dual("vit", "llm")
    model.text_model.requires_grad_(False)
    return model


@pytest.fixture
def processor(tiny_tokenizer):
    tiny_tokenizer.padding_side = "right"  # BERT counts positions from the first token, padding or not
    return MedCLIPProcessor(CT3DImageProcessor(), tiny_tokenizer, max_length=40)


def _watch(model):
    """How many texts the text tower has read, in a list that grows by call."""
    read = []
    model.text_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return read


def _alone(model, processor, texts):
    """What the dual tower gives for each text, one at a time."""
    with torch.no_grad():
        return torch.cat([model.text_features(**processor(text=[text])) for text in texts])


@pytest.mark.parametrize("on_disk", [False, True])
def test_gives_what_the_tower_gives_and_asks_once(model, processor, tmp_path, on_disk):
    processor.instruction = "Describe {text}"
    expected = _alone(model, processor, TEXTS)
    model.train()
    read = _watch(model)
    store = TextFeatureStore(model, processor, tmp_path if on_disk else None)
    features = store.features(TEXTS)
    assert (features.dtype, features.shape) == (torch.float32, expected.shape)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(features[0], features[3])
    assert sum(read) == 4
    assert torch.equal(store.features(TEXTS[::-1]), features.flip(0))
    assert sum(read) == 4
    store.features(["no nodule", "small"])
    assert sum(read) == 5
    assert model.text_model.training  # as it was
    assert store.features([]).shape == (0, expected.shape[1])


def test_a_further_run_computes_nothing_and_reads_the_same(llm, processor, tmp_path):
    llm.save_pretrained(tmp_path / "model")
    processor.tokenizer.save_pretrained(tmp_path / "model")
    first = TextFeatureStore(llm, processor, tmp_path / "features").features(TEXTS)
    again = MedCLIPModel.from_pretrained(tmp_path / "model")
    again.text_model.requires_grad_(False)
    read = _watch(again)
    store = TextFeatureStore(again, processor, tmp_path / "features")
    assert torch.equal(store.features(TEXTS), first)
    assert read == []
    assert store.features([*TEXTS, "small"]).shape == (6, 32)
    assert read == [1]
    assert len(list((tmp_path / "features").iterdir())) == 1
    assert len(list((tmp_path / "features").glob("*/*.safetensors"))) == 2


def test_stored_features_train_as_the_reports_do(llm, processor):
    features = TextFeatureStore(llm, processor).features(TEXTS[:3])
    pixels = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        stored = llm(pixel_values=pixels, text_features=features, return_loss=True).loss
        read = llm(pixel_values=pixels, **processor(text=TEXTS[:3]), return_loss=True).loss
    torch.testing.assert_close(stored, read, atol=1e-5, rtol=1e-5)


def _nudge(model, processor):
    model.text_model.get_input_embeddings().weight.data[7, 3] += 1e-3


def _prompt(model, processor):
    model.text_model.tokenizer = processor.tokenizer
    model.text_model.set_prompt("There is", "no nodule")
    model.text_model.requires_grad_(False)


def _trained_prompt(model, processor):
    model.text_model.soft_prompt.weight.data[0, 0] += 0.5


def _config(model, processor):
    model.text_model.config.normalize = True


def _length(model, processor):
    processor.max_length = 4


def _instruction(model, processor):
    processor.instruction = "small {text}"


def _truncation(model, processor):
    processor.tokenizer.truncation_side = "left"


def _vocabulary(model, processor):
    processor.tokenizer.add_tokens(["nodules"])


@pytest.mark.parametrize(
    "change",
    [_nudge, _prompt, _trained_prompt, _config, _length, _instruction, _truncation, _vocabulary],
)
def test_whatever_changes_the_vectors_starts_another_folder(llm, processor, tmp_path, change):
    TextFeatureStore(llm, processor, tmp_path).features(TEXTS)
    change(llm, processor)
    read = _watch(llm)
    store = TextFeatureStore(llm, processor, tmp_path)
    features = store.features(TEXTS)
    assert sum(read) == 4
    assert len(list(tmp_path.iterdir())) == 2
    torch.testing.assert_close(features, _alone(llm, processor, TEXTS), atol=1e-5, rtol=1e-5)


def test_the_pooling_of_the_dual_tower_counts_too(make_dual, processor, tmp_path):
    vectors = []
    for pooling in ("cls", "mean"):
        model = make_dual("vit", "bert", text_pooling=pooling)
        model.text_model.requires_grad_(False)
        vectors.append(TextFeatureStore(model, processor, tmp_path).features(TEXTS))
    assert len(list(tmp_path.iterdir())) == 2
    assert not torch.allclose(*vectors, atol=1e-2)


def test_what_does_not_change_the_vectors_does_not_count(llm, processor, tmp_path):
    TextFeatureStore(llm, processor, tmp_path).features(TEXTS)
    llm.text_model.config._name_or_path = "elsewhere"
    llm.visual_projection.weight.data.zero_()
    processor.tokenizer(
        ["no"], truncation=True, max_length=2, padding=True
    )  # leaves its mark in the tokenizer
    read = _watch(llm)
    TextFeatureStore(llm, processor, tmp_path).features(TEXTS)
    assert read == []


def test_an_interrupted_run_keeps_what_it_had(llm, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "TEXTS_PER_FILE", 2)
    texts = [f"nodule {n}" for n in range(6)]
    expected = _alone(llm, processor, texts)
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt

    handle = llm.text_model.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        TextFeatureStore(llm, processor, tmp_path).features(texts)
    handle.remove()
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2
    read = _watch(llm)
    features = TextFeatureStore(llm, processor, tmp_path).features(texts)
    assert read == [2]
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_of_two_that_start_together_one_computes_and_the_other_waits(make_dual, processor, tmp_path):
    models = [make_dual("vit", "llm") for _ in range(2)]
    for model in models:
        model.text_model.requires_grad_(False)
    is_computing, may_go_on = threading.Event(), threading.Event()

    def pause(*_):
        is_computing.set()
        assert may_go_on.wait(20)

    models[0].text_model.register_forward_hook(pause)
    read = _watch(models[1])
    found = {}

    def ask(number):
        found[number] = TextFeatureStore(models[number], processor, tmp_path).features(TEXTS)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    threads[0].start()
    assert is_computing.wait(20)
    threads[1].start()
    threads[1].join(0.3)
    assert threads[1].is_alive()
    may_go_on.set()
    for thread in threads:
        thread.join(20)
    assert torch.equal(found[0], found[1])
    assert read == []


def test_a_file_system_without_locks_is_used_all_the_same(llm, processor, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    features = TextFeatureStore(llm, processor, tmp_path).features(TEXTS)
    torch.testing.assert_close(features, _alone(llm, processor, TEXTS), atol=1e-5, rtol=1e-5)
    assert "runs that start together compute the same" in caplog.text


def test_another_error_of_the_lock_is_passed_on(llm, processor, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "disk on fire")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="disk on fire"):
        TextFeatureStore(llm, processor, tmp_path).features(TEXTS)


def test_files_hold_hashes_and_vectors_and_no_text(llm, processor, tmp_path):
    store = TextFeatureStore(llm, processor, tmp_path)
    store.features(TEXTS)
    (path,) = store.folder.glob("*.safetensors")
    assert {file.name for file in store.folder.iterdir()} == {path.name, "about.json", "filling.lock"}
    assert {name: tuple(value.shape) for name, value in load_file(path).items()} == {
        "sha256": (4, 32),
        "vectors": (4, 32),
    }
    about = json.loads((store.folder / "about.json").read_text())
    assert (about["tower"], about["max_length"], about["instruction"]) == ("LLMBiEncoder", 40, None)
    assert not any(b"nodule" in file.read_bytes() for file in store.folder.iterdir())


def test_refuses_a_tower_whose_vectors_depend_on_the_batch(llm, processor):
    store = TextFeatureStore(llm, processor)
    llm.text_model.config.prompt_padding = "legacy_middle"
    for ask in (lambda: store.features(TEXTS), lambda: TextFeatureStore(llm, processor)):
        with pytest.raises(ValueError, match=r"same vector in every batch .* got prompt_padding='legacy"):
            ask()


@pytest.mark.parametrize(
    ("mode", "settings", "name"),
    [
        ("soft_prompt", {}, r"1 trained tensors such as soft_prompt\.weight"),
        ("lora", {"lora": LoraSettings(rank=2)}, "trained tensors such as soft_prompt|such as model"),
        ("last_n", {"num_last_layers": 1}, r"such as model\.layers\.1\."),
        ("full", {}, r"such as model\.embed_tokens\.weight"),
    ],
)
def test_refuses_a_tower_that_is_trained(llm, processor, tmp_path, mode, settings, name):
    store = TextFeatureStore(llm, processor, tmp_path)
    set_tower_mode(llm.text_model, mode, **settings)
    for ask in (lambda: store.features(TEXTS), lambda: TextFeatureStore(llm, processor, tmp_path)):
        with pytest.raises(ValueError, match=rf"must be frozen .* got .*{name}.*\. Set text_mode to frozen"):
            ask()


def test_refuses_empty_texts_damaged_files_and_numbers_that_are_not_finite(llm, processor, tmp_path):
    store = TextFeatureStore(llm, processor, tmp_path)
    with pytest.raises(ValueError, match=r"must not be empty, got nothing to read at positions \[1, 3\]"):
        store.features(["no nodule", " ", "present", ""])
    store.features(TEXTS)
    (path,) = store.folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"must be whole, got a damaged {path.name} in .*Delete it"):
        TextFeatureStore(llm, processor, tmp_path)
    llm.text_model.latent_attn.latents.data.fill_(float("nan"))
    bad = TextFeatureStore(llm, processor, tmp_path)
    with pytest.raises(FloatingPointError, match="must be finite, got 2 of 2 that are not"):
        bad.features(["no nodule", "present"])
    assert not list(bad.folder.glob("*.safetensors"))
