import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import ByT5Tokenizer, Phi3Config, PreTrainedTokenizerFast, Qwen3Config

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.llm_biencoder.modeling_text_inputs import (
    TOKENIZER_LOCK,
    TokenRow,
    as_texts,
    bare_ids,
    pad_rows,
    token_rows,
)
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

SEP = "!@#$%^&*()"
TEXTS = ["There is no effusion.", "nodule", "There is a small nodule in the left upper lobe.", "no"]


@pytest.fixture
def make_rows(tiny_tokenizer, tiny_text_config):
    """Rows of the tiny tokenizer; keywords go to the configuration, or to the call."""

    def make(texts, tokenizer=tiny_tokenizer, **settings):
        call = {k: settings.pop(k) for k in ("max_length", "separator", "instruction") if k in settings}
        defaults = {"text_config": tiny_text_config.text_config, "pooling": "mean", "max_length": 64}
        config = LLMBiEncoderConfig(**defaults | settings)
        return token_rows(tokenizer, texts, config, **call)

    return make


@pytest.fixture
def read(make_rows, tiny_tokenizer):
    """Tokens of one text, and those of them that are pooled."""

    def read(text, tokenizer=tiny_tokenizer, **settings):
        (row,) = make_rows(text, tokenizer, **settings)
        tokens = tokenizer.convert_ids_to_tokens(row.input_ids)
        mask = [1] * len(tokens) if row.embed_mask is None else row.embed_mask
        assert len(mask) == len(tokens)
        return tokens, [token for token, pooled in zip(tokens, mask, strict=True) if pooled]

    return read


def _qwen_style(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """No token in front, one behind, which is also the pad token."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(single="$A <pad>", special_tokens=[("<pad>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


@pytest.mark.parametrize(
    ("text", "pooled"),
    [
        (f"Describe{SEP}There is", ["There", "\u0120is"]),
        (f"Describe.{SEP}There is", [".There", "\u0120is"]),
        (f"Describe{SEP} There is", ["\u0120There", "\u0120is"]),
        (f"Describe {SEP}There is", ["\u0120There", "\u0120is"]),
        (f"Describe{SEP}   no", ["\u0120", "\u0120", "\u0120", "no"]),
        (f"Describe{SEP}no{SEP}", ["no", *SEP]),
        (f"Describe{SEP}no{SEP}is", ["no", *SEP, "is"]),
        (f"Describe no{SEP}dule is", ["\u0120nodule", "\u0120is"]),
        (f"{SEP}no", ["no"]),
        ("There is", ["There", "\u0120is"]),
        # A letter of two bytes is two tokens, each of which spans the whole letter.
        (f"Describe{SEP}\u00e9", ["\u00c3", "\u00a9"]),
        (f"Describe \u00e9{SEP}no", ["no"]),
        (f"Describe \U0001fac1{SEP} no", ["\u0120no"]),
    ],
)
def test_exact_mode_pools_every_token_that_overlaps_the_text(read, text, pooled):
    assert read(text, separator=SEP)[1] == pooled


@pytest.mark.parametrize(
    ("text", "max_length", "tokens"),
    [
        (f"Describe no{SEP} effusion is present", 4, ["<bos>", "Describe", "\u0120no", "\u0120effusion"]),
        (f"Describe{SEP} no is no is no", 5, ["<bos>", "Describe", "\u0120no", "\u0120is", "\u0120no"]),
    ],
)
@pytest.mark.parametrize("mask_mode", ["exact", "legacy_suffix"])
def test_truncation_cuts_the_end_of_the_text(read, text, max_length, tokens, mask_mode):
    assert read(text, separator=SEP, max_length=max_length, mask_mode=mask_mode)[0] == tokens


def _reference_suffix(tokenizer, text: str, max_length: int) -> tuple[list[int], list[int]]:
    """Ids and mask of one text by the arithmetic of the public remote code, on a batch of one."""
    parts = text.split(SEP)
    ids = tokenizer("".join(parts), truncation=True, max_length=max_length).input_ids
    counted = parts[1] if len(parts) > 1 else text
    alone = tokenizer(counted, truncation=True, max_length=max_length, add_special_tokens=False).input_ids
    mask = [0] * len(ids)
    if len(alone) > 0:
        mask[-len(alone) :] = [1] * min(len(alone), len(ids))
    else:
        mask = [1] * len(ids)
    return ids, mask


@pytest.mark.parametrize("max_length", [4, 6, 64])
@pytest.mark.parametrize(
    "text",
    [
        f"Describe{SEP} There is",
        f"Describe.{SEP}There is",
        f"Describe is no{SEP}dule",
        f"Describe no{SEP} There is no effusion present",
        f"Describe{SEP} no{SEP} There is small",
        f"Describe{SEP}no{SEP}",
        f"Describe{SEP}",
        f"{SEP} no",
        "There is no",
        f"Describe{SEP}\u00e9 no",
    ],
)
def test_legacy_mode_has_the_arithmetic_of_the_public_code(make_rows, tiny_tokenizer, text, max_length):
    (row,) = make_rows(text, separator=SEP, max_length=max_length, mask_mode="legacy_suffix")
    assert (row.input_ids, row.embed_mask) == _reference_suffix(tiny_tokenizer, text, max_length)


def test_the_text_prefix_is_read_with_the_text_and_not_pooled(read):
    tokens, pooled = read("no effusion", text_prefix="Report: ")
    assert tokens == ["<bos>", *"Report", ":", "\u0120no", "\u0120effusion"]
    assert pooled == ["\u0120no", "\u0120effusion"]
    tokens, pooled = read(f" Describe{SEP} no", text_prefix="Report:", separator=SEP)
    assert tokens == ["<bos>", *"Report", ":", "\u0120Describe", "\u0120no"]
    assert pooled == ["\u0120no"]


def test_an_instruction_is_put_into_its_template(read, make_rows):
    template = "Instruct: {instruction}\nQuery:"
    tokens, pooled = read("no", instruction="There is {x}", instruction_template=template)
    assert "".join(tokens) == "<bos>Instruct:\u0120There\u0120is\u0120{x}\u010aQuery:no"
    assert pooled == ["no"]
    plain = make_rows("no", instruction="Describe ")
    assert plain == make_rows(f"Describe {SEP}no", separator=SEP)


@pytest.mark.parametrize(
    ("pooling", "behind"), [("last_token", ["<pad>"]), ("mean", []), ("first_token", [])]
)
def test_what_the_tokenizer_puts_behind_a_text_is_pooled_where_the_last_token_is(
    read, tiny_tokenizer, pooling, behind
):
    qwen = _qwen_style(tiny_tokenizer)
    settings = {"tokenizer": qwen, "pooling": pooling}
    tokens, pooled = read("There is no", instruction="Describe ", **settings)
    assert tokens == ["Describe", "\u0120There", "\u0120is", "\u0120no", "<pad>"]
    assert pooled == ["\u0120There", "\u0120is", "\u0120no", *behind]
    tokens, pooled = read("There is no", instruction="Describe ", max_length=4, **settings)
    assert tokens == ["Describe", "\u0120There", "\u0120is", "<pad>"]
    assert pooled == ["\u0120There", "\u0120is", *behind]
    assert read("There is no", **settings)[1] == ["There", "\u0120is", "\u0120no", "<pad>"]


def test_an_end_token_written_in_the_text_is_not_taken_for_the_tokenizer_s(read):
    tokens, pooled = read(f"<eos>{SEP}no", separator=SEP, pooling="last_token")
    assert tokens == ["<bos>", "<eos>", "no"]
    assert pooled == ["no"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_on_the_side_of_the_tokenizer(tiny_tokenizer, side):
    tiny_tokenizer.padding_side = side
    inputs = pad_rows(tiny_tokenizer, [TokenRow([5, 6, 7], [0, 1, 1]), TokenRow([8], [1])])
    pads = {"left": [0, 0, 8], "right": [8, 0, 0]}
    masks = {"left": [0, 0, 1], "right": [1, 0, 0]}
    assert inputs["input_ids"].tolist() == [[5, 6, 7], pads[side]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], masks[side]]
    assert inputs["embed_mask"].tolist() == [[0, 1, 1], masks[side]]
    assert list(pad_rows(tiny_tokenizer, [TokenRow([5], None)])) == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("texts", "name"), [(None, "NoneType"), (7, "int"), ({"a": "no"}, "dict"), ({"no", "is"}, "set")]
)
def test_refuses_what_is_not_several_texts_in_order(texts, name):
    with pytest.raises(TypeError, match=f"a string or several in order, got {name}"):
        as_texts(texts)


@pytest.mark.parametrize("text", [" ", f"Describe{SEP}", f"Describe{SEP} \n", SEP])
def test_refuses_an_empty_text(make_rows, text):
    with pytest.raises(ValueError, match=r"nothing to encode at positions \[1\]"):
        make_rows(["no", text], separator=SEP)


def test_refuses_a_text_of_which_a_prefix_is_all(make_rows):
    for mask_mode in ("exact", "legacy_suffix"):
        with pytest.raises(ValueError, match=r"nothing to encode at positions \[0\]"):
            make_rows(" ", text_prefix="Report:", mask_mode=mask_mode)


def test_refuses_settings_that_contradict_each_other(make_rows, tiny_tokenizer):
    with pytest.raises(ValueError, match="not come with an instruction, got '<sep>' and 'Describe'"):
        make_rows("no", separator="<sep>", instruction="Describe")
    with pytest.raises(ValueError, match="separator must not be empty, got ''"):
        make_rows("no", separator="")
    with pytest.raises(ValueError, match=r"max_length must be at least 2, .*got 1"):
        make_rows("no", max_length=1)
    with pytest.raises(ValueError, match=r"room for its text, got none left at positions \[1\]"):
        make_rows(["no is", f"Describe no is{SEP} no"], separator=SEP, max_length=4)
    tiny_tokenizer.truncation_side = "left"
    with pytest.raises(ValueError, match="cut texts on the right, got truncation_side 'left'"):
        make_rows("no")


def test_refuses_more_tokens_than_the_decoder_has_positions(make_rows):
    assert len(make_rows("no" * 255, max_length=512)[0].input_ids) == 256
    with pytest.raises(ValueError, match=r"max_length must be at most 256, .* got a text of 257 tokens"):
        make_rows("no" * 256, max_length=512)


def test_refuses_a_tokenizer_that_does_not_know_where_a_token_comes_from(make_rows):
    with pytest.raises(TypeError, match="tokenizer must be a fast one, got ByT5Tokenizer"):
        make_rows("no", ByT5Tokenizer())


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
    "original_max_position_embeddings": 20,
}


def test_refuses_a_text_that_would_turn_the_positions_of_its_whole_batch(make_rows, tiny_tokenizer):
    sizes = {"vocab_size": len(tiny_tokenizer), "hidden_size": 32, "num_attention_heads": 4}
    phi = Phi3Config(
        **sizes, rope_parameters=LONGROPE, original_max_position_embeddings=20, max_position_embeddings=64
    )
    assert len(make_rows("no" * 19, text_config=phi)[0].input_ids) == 20
    with pytest.raises(ValueError, match=r"at most 20, beyond which longrope .* got a text of 21 tokens"):
        make_rows(["no", "no" * 20], text_config=phi)
    with pytest.raises(ValueError, match=r"at most 20, beyond which longrope .* got a text of 22 tokens"):
        make_rows("no" * 19, text_config=phi, hard_prompt="no no", hard_prompt_ids=[5, 6])
    # Of a family that has other positions for each type of layer.
    phi.rope_parameters = {"sliding_attention": {"rope_type": "default"}, "full_attention": LONGROPE}
    with pytest.raises(ValueError, match="at most 20, beyond which longrope"):
        make_rows("no" * 20, text_config=phi)


@pytest.mark.parametrize(("name", "value"), [("instruction", 32), ("separator", b"<sep>")])
def test_refuses_an_instruction_or_a_separator_that_is_no_string(make_rows, name, value):
    with pytest.raises(TypeError, match=f"{name} must be a string, got {value!r}"):
        make_rows("no", **{name: value})


def test_refuses_half_a_character_and_names_its_place_but_not_the_text(make_rows):
    message = r"got the lone surrogate U\+D83E at character 3 of the text at position 1"
    with pytest.raises(ValueError, match=message) as refusal:
        make_rows(["no", "no \ud83e"])
    assert refusal.value.__cause__ is None
    with pytest.raises(ValueError, match=r"U\+DC80 at character 0 of the text at position 0"):
        as_texts("\udc80")
    assert as_texts("\U0001fac1") == ["\U0001fac1"]


def test_threads_that_share_a_tokenizer_cut_at_their_own_length(make_rows):
    texts = [f"There is no nodule {i} effusion small present " * (1 + i % 3) for i in range(12)]
    lengths = [8, 16, 64, 64]
    expected = {length: make_rows(texts, max_length=length) for length in lengths}
    together = threading.Barrier(len(lengths))

    def read(length: int) -> list[bool]:
        together.wait()
        return [make_rows(texts, max_length=length) == expected[length] for _ in range(60)]

    with ThreadPoolExecutor(len(lengths)) as pool:
        assert [sum(results) for results in pool.map(read, lengths)] == [60] * 4


@pytest.mark.parametrize("mask_mode", ["exact", "legacy_suffix"])
def test_nothing_is_tokenized_outside_the_lock(make_rows, tiny_tokenizer, mask_mode):
    with ThreadPoolExecutor(1) as pool:
        with TOKENIZER_LOCK:
            rows = pool.submit(make_rows, f"Describe{SEP}no", separator=SEP, mask_mode=mask_mode)
            ids = pool.submit(bare_ids, tiny_tokenizer, "no")
            with pytest.raises(TimeoutError):
                rows.result(timeout=0.2)
        assert rows.result(timeout=10)[0].embed_mask == [0, 0, 1]
        with TOKENIZER_LOCK:
            pass
        assert ids.result(timeout=10) == tiny_tokenizer("no", add_special_tokens=False).input_ids


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_worker_forked_while_another_thread_tokenizes_can_tokenize():
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with TOKENIZER_LOCK:
            held.set()
            release.wait(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if TOKENIZER_LOCK.acquire(timeout=5) else 1)
    assert os.waitpid(child, 0)[1] == 0
    release.set()
    thread.join()


QWEN = {
    "pooling": "last_token",
    "bidirectional": False,
    "instruction_template": "Instruct: {instruction}\nQuery:",
    "normalize": True,
    "max_length": 64,
}


@pytest.fixture
def qwen(tiny_tokenizer) -> LLMBiEncoder:
    decoder = Qwen3Config(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.2,
        pad_token_id=0,
    )
    encoder = LLMBiEncoder(LLMBiEncoderConfig(text_config=decoder, **QWEN)).eval()
    encoder.tokenizer = _qwen_style(tiny_tokenizer)
    return encoder


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("instruction", [None, "Describe no effusion"])
def test_qwen3_embedding_reads_its_terminator_on_either_side_of_the_padding(qwen, side, instruction):
    qwen.tokenizer.padding_side = side
    before = "" if instruction is None else "Instruct: Describe no effusion\nQuery:"
    expected = []
    for text in TEXTS:
        ids = [*qwen.tokenizer(before + text, add_special_tokens=False).input_ids, 0]
        state = qwen.model(torch.tensor([ids])).last_hidden_state[0, -1]
        expected.append(state / state.norm())
    inputs = qwen.tokenize(TEXTS, instruction=instruction)
    torch.testing.assert_close(qwen(**inputs).pooler_output, torch.stack(expected), atol=1e-5, rtol=0)
    encoded = qwen.encode(TEXTS, instruction)
    torch.testing.assert_close(encoded, torch.stack(expected), atol=1e-5, rtol=0)


@torch.no_grad()
def test_matryoshka_keeps_the_leading_numbers_and_normalizes_them(qwen, tmp_path):
    whole = qwen.encode_text(TEXTS)
    torch.testing.assert_close(whole.norm(dim=-1), torch.ones(4))
    qwen.config.embedding_dim = 12
    cut = qwen.encode_text(TEXTS)
    torch.testing.assert_close(cut, whole[:, :12] / whole[:, :12].norm(dim=-1, keepdim=True))
    qwen.config.normalize = False
    torch.testing.assert_close(qwen.encode_text(TEXTS).norm(dim=-1) > 1.5, torch.ones(4) == 1)
    qwen.save_pretrained(tmp_path)
    reloaded = LLMBiEncoder.from_pretrained(tmp_path).eval()
    assert reloaded.config.hidden_size == 12
    torch.testing.assert_close(reloaded.encode_text(TEXTS), qwen.encode_text(TEXTS), atol=1e-5, rtol=0)


def test_the_terminator_survives_saving(qwen, tmp_path):
    qwen.save_pretrained(tmp_path)
    reloaded = LLMBiEncoder.from_pretrained(tmp_path)
    assert reloaded.tokenize("There is no", max_length=3)["input_ids"][0].tolist()[-1] == 0
    assert torch.equal(reloaded.tokenize(TEXTS)["input_ids"], qwen.tokenize(TEXTS)["input_ids"])
