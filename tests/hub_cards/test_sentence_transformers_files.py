import json
import re

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import processors
from transformers import AutoTokenizer

from radtower.hub_cards.export import export_model
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

# Of very different lengths, so that both libraries pad; the last one is cut.
TEXTS = ["nodule", "There is no effusion.", "There is a small nodule in the left upper lobe. " * 6]
POOLINGS = ["mean", "last_token", "first_token", "latent_attention"]


@pytest.fixture
def make_export(tiny_llm_folder, tmp_path):
    """An encoder and its export folder."""

    def make(**fields):
        fields = {"num_latents": 6, "num_latent_heads": 4, "max_length": 40} | fields
        prompt = {name: fields.pop(name) for name in ("hard_prompt", "soft_prompt") if name in fields}
        encoder = LLMBiEncoder.from_llm(tiny_llm_folder, **fields)
        if prompt:
            encoder.set_prompt(**prompt, text_prefix=encoder.config.text_prefix)
        encoder.save_pretrained(tmp_path / "trained")
        return encoder, export_model(tmp_path / "trained", tmp_path / "out")

    return make


def _assert_same(vectors, expected):
    """To 1e-6 of their length, which is 5 or more where vectors are not normalized."""
    size = expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(vectors / size, expected / size, atol=1e-6, rtol=0)


def _load(folder):
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def _encode(model, texts=TEXTS, **options):
    return model.encode(texts, convert_to_tensor=True, show_progress_bar=False, **options)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_sentence_transformers_gives_the_same_vectors(make_export, pooling, normalize, side):
    encoder, folder = make_export(pooling=pooling, normalize=normalize)
    model = _load(folder)
    assert model.max_seq_length == 40
    assert model.get_embedding_dimension() == 32
    model.tokenizer.padding_side = side
    vectors = _encode(model)
    _assert_same(vectors, encoder.encode(TEXTS))
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3)) is normalize
    backbone = model[0].model
    assert type(backbone).__name__ == "LLMBiEncoder"
    assert backbone.model.config.is_causal is False


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_prompt_is_read_and_not_pooled_as_an_instruction(make_export, pooling):
    encoder, folder = make_export(pooling=pooling)
    model = _load(folder)
    texts = TEXTS[:2]
    prompted = _encode(model, [f" {text}" for text in texts], prompt="Describe no")
    _assert_same(prompted, encoder.encode([f" {text}" for text in texts], instruction="Describe no"))
    assert (prompted - _encode(model, [f" {text}" for text in texts])).abs().max() > 1e-2


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_token_behind_the_text_is_pooled_by_one_library_and_the_card_says_so(
    make_export, tmp_path, pooling
):
    encoder, _ = make_export(pooling=pooling)
    eos = encoder.tokenizer.eos_token_id
    encoder.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", eos)]
    )
    encoder.save_pretrained(tmp_path / "trained")
    folder = export_model(tmp_path / "trained", tmp_path / "closed")
    model = _load(folder)
    _assert_same(_encode(model), encoder.encode(TEXTS))
    texts = [f" {text}" for text in TEXTS[:2]]
    prompted, expected = _encode(model, texts, prompt="Describe no"), encoder.encode(texts, "Describe no")
    is_same = pooling in ("last_token", "first_token")
    assert ((prompted - expected).abs().max() < 1e-5) == is_same
    card = (folder / "README.md").read_text()
    assert ("the vectors are not the same: there the token that this tokenizer" in card) is not is_same
    assert ("the vectors of texts and of texts with an instruction are the same" in card) is is_same


@pytest.mark.parametrize("name", ["eos_token", "bos_token", "unk_token"])
def test_a_tokenizer_without_padding_pads_with_another_special_token(make_export, tmp_path, name):
    encoder, _ = make_export(pooling="mean")
    _name_only(tmp_path / "trained", name)
    folder = export_model(tmp_path / "trained", tmp_path / "padded")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, getattr(tokenizer, name)) == ("<eos>", "<eos>")
    _assert_same(_encode(_load(folder)), encoder.encode(TEXTS))


def test_without_a_token_to_pad_with_there_is_nothing_for_sentence_transformers(
    make_export, tmp_path, caplog
):
    encoder, _ = make_export(pooling="mean")
    _name_only(tmp_path / "trained", None)
    folder = export_model(tmp_path / "trained", tmp_path / "unpadded")
    assert not (folder / "modules.json").exists()
    assert "sentence-transformers" not in (folder / "README.md").read_text()
    assert "no special token to pad with: the export has no files" in caplog.text
    _assert_same(LLMBiEncoder.from_pretrained(folder).encode(TEXTS), encoder.encode(TEXTS))


def _name_only(folder, name):
    """Take every special token from a tokenizer but one."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for token in ("pad_token", "eos_token", "bos_token", "unk_token"):
        settings.pop(token, None)
    path.write_text(json.dumps(settings | ({name: "<eos>"} if name else {})))


@pytest.mark.parametrize(
    ("pooling", "fields"),
    [
        ("mean", {"hard_prompt": "There is", "soft_prompt": "Describe small nodule"}),
        ("latent_attention", {"hard_prompt": "There is", "soft_prompt": "Describe small nodule"}),
        ("last_token", {"text_prefix": "Describe."}),
        ("last_token", {"hard_prompt": "There is", "soft_prompt": "Describe", "text_prefix": "no."}),
    ],
)
def test_the_prompt_of_the_configuration_is_kept(make_export, pooling, fields):
    encoder, folder = make_export(pooling=pooling, **fields)
    _assert_same(_encode(_load(folder)), encoder.encode(TEXTS))
    without = LLMBiEncoder.from_pretrained(folder)
    without.set_prompt()
    assert (without.encode(TEXTS) - encoder.encode(TEXTS)).abs().max() > 1e-2


@pytest.mark.parametrize("pooling", ["mean", "first_token", "latent_attention"])
def test_a_prefix_that_could_swallow_a_word_is_not_left_to_sentence_transformers(make_export, pooling):
    _, folder = make_export(pooling=pooling, text_prefix="Describe.")
    assert not (folder / "modules.json").exists()


def test_vectors_that_depend_on_the_batch_are_not_left_to_sentence_transformers(make_export, caplog):
    legacy = {"pooling": "last_token", "prompt_padding": "legacy_middle"}
    encoder, folder = make_export(**legacy, hard_prompt="There is")
    assert not (folder / "modules.json").exists()
    assert "sentence-transformers" not in (folder / "README.md").read_text()
    assert "with which a vector depends on the batch" in caplog.text
    reloaded = LLMBiEncoder.from_pretrained(folder)
    _assert_same(reloaded.encode(TEXTS, batch_size=3), encoder.encode(TEXTS, batch_size=3))
    assert '`""` before every text, padding in between' in (folder / "README.md").read_text()
    _, without_prompt = make_export(**legacy)
    assert (without_prompt / "modules.json").exists()


@pytest.mark.parametrize("pooling", ["mean", "latent_attention"])
def test_a_matryoshka_cut_is_kept(make_export, pooling):
    encoder, folder = make_export(pooling=pooling, embedding_dim=8, normalize=True)
    model = _load(folder)
    assert model.get_embedding_dimension() == 8
    _assert_same(_encode(model), encoder.encode(TEXTS))


def test_a_causal_encoder_stays_causal(make_export):
    encoder, folder = make_export(pooling="last_token", bidirectional=False, normalize=True)
    model = _load(folder)
    assert model[0].model.model.config.is_causal is True
    _assert_same(_encode(model), encoder.encode(TEXTS))


def test_pooling_is_left_to_sentence_transformers_where_it_can(make_export):
    _, folder = make_export(pooling="last_token", normalize=True)
    assert json.loads((folder / "1_Pooling" / "config.json").read_text()) == {
        "include_prompt": True,
        "pooling_mode_cls_token": False,
        "pooling_mode_lasttoken": True,
        "pooling_mode_mean_tokens": False,
        "word_embedding_dimension": 32,
    }
    assert [entry["path"] for entry in json.loads((folder / "modules.json").read_text())] == [
        "",
        "1_Pooling",
        "2_Normalize",
    ]


def test_an_export_is_replaced_with_all_its_files(make_export, tmp_path):
    _, folder = make_export(pooling="mean", normalize=True)
    assert (folder / "2_Normalize").is_dir()
    LLMBiEncoder.from_pretrained(tmp_path / "trained", normalize=False).save_pretrained(tmp_path / "trained")
    assert export_model(tmp_path / "trained", folder) == folder
    assert not (folder / "2_Normalize").exists()
    (folder / "1_Pooling" / "notes.txt").write_text("by hand")
    with pytest.raises(FileExistsError, match=r"got .*out, which is neither"):
        export_model(tmp_path / "trained", folder)


def test_token_types_are_not_asked_for(make_export, tmp_path):
    encoder, folder = make_export(pooling="mean")
    path = tmp_path / "trained" / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path / "trained")(TEXTS[0])
    export_model(tmp_path / "trained", folder)
    assert list(AutoTokenizer.from_pretrained(folder)(TEXTS[0])) == ["input_ids", "attention_mask"]
    _assert_same(_encode(_load(folder)), encoder.encode(TEXTS))


def test_a_classifier_is_no_sentence_encoder(make_model_folder, tmp_path):
    folder = export_model(make_model_folder("llm_classifier"), tmp_path / "out")
    assert not (folder / "modules.json").exists()
    assert (export_model(make_model_folder("llm_mean"), tmp_path / "mean") / "modules.json").exists()


def test_the_first_tokens_can_be_left_out_of_the_pooling(make_export):
    encoder, _ = make_export(pooling="mean")
    inputs = encoder.tokenize(TEXTS[1:])
    hidden = encoder(**inputs).last_hidden_state
    for length in (2, torch.tensor(2), torch.tensor([2, 2])):
        pooled = encoder.forward_prompted(**inputs, prompt_length=length).pooler_output
        torch.testing.assert_close(pooled[0], hidden[0, inputs["attention_mask"][0] == 1][2:].mean(dim=0))
    everything = encoder.forward_prompted(inputs["input_ids"][:1]).pooler_output
    torch.testing.assert_close(everything, encoder(inputs["input_ids"][:1]).pooler_output)


@pytest.mark.parametrize("pooling", ["latent_attention", "last_token"])
def test_the_card_says_how_both_libraries_load_it(make_export, pooling, monkeypatch, capsys):
    _, folder = make_export(pooling=pooling)
    card = (folder / "README.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(folder.parent)
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "(2, 32)"
    assert ("must not melt into its last one" in card) is (pooling == "latent_attention")
    assert "End it with a line break" in card


def test_the_card_names_the_prompt_and_is_silent_where_sentence_transformers_would_differ(make_export):
    _, folder = make_export(
        pooling="mean", embedding_dim=8, normalize=True, bidirectional=False, text_prefix="\nQuery:"
    )
    card = (folder / "README.md").read_text()
    assert '| prompt | `""`, 0 trained vectors, `"\\nQuery:"` before every text |' in card
    assert "| vector | 8 numbers, of length 1 |" in card
    assert "| attention | causal: a token sees what is before it |" in card
    assert "sentence-transformers" not in card
