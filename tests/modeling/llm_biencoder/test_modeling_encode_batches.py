import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from radtower.modeling.llm_biencoder import modeling_encode_batches
from radtower.modeling.llm_biencoder.modeling_encode_batches import (
    BatchLimit,
    encode_distinct,
    in_batches,
    in_eval_mode,
)
from radtower.modeling.llm_biencoder.modeling_text_inputs import TokenRow
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

CPU, ACCELERATOR = torch.device("cpu"), torch.device("cuda")
TEXTS = [
    "no nodule",
    "There is a small effusion present.",
    "no",
    "no nodule",
    "is",
    "There is no nodule.",
    "no",
]


@pytest.fixture
def encoder(tiny_text_config, tiny_tokenizer) -> LLMBiEncoder:
    encoder = LLMBiEncoder(tiny_text_config).eval()
    encoder.tokenizer = tiny_tokenizer
    return encoder


def _letters(texts):
    """One token per letter."""
    return [TokenRow([ord(letter) for letter in text], None) for text in texts]


def test_auto_fills_batches_by_tokens_and_a_number_by_texts():
    sizes = {kind.type: BatchLimit("auto", kind).fit(100) for kind in (CPU, ACCELERATOR)}
    assert sizes == {"cpu": 10, "cuda": 327}
    assert BatchLimit("auto", CPU).fit(5000) == 1, "a text longer than a batch is encoded alone"
    assert BatchLimit(np.int64(7), CPU).fit(5000) == 7
    assert BatchLimit(7, CPU).fit(5000) == BatchLimit(7, ACCELERATOR).fit(1) == 7


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (0, "batch_size must be at least 1, got 0"),
        (-3, "batch_size must be at least 1, got -3"),
        (np.int64(-2), "batch_size must be at least 1, got -2"),
        (np.bool_(True), "batch_size must be 'auto' or a number, got np.True_"),
        (2.5, "batch_size must be 'auto' or a number, got 2.5"),
        ("many", "batch_size must be 'auto' or a number, got 'many'"),
        (True, "batch_size must be 'auto' or a number, got True"),
    ],
)
def test_refuses_a_batch_size_that_means_nothing(encoder, batch_size, message):
    with pytest.raises(ValueError, match=message):
        encoder.encode(TEXTS, batch_size=batch_size)


def test_batches_hold_similar_lengths_the_longest_first_within_the_tokens_allowed():
    limit = BatchLimit("auto", CPU)
    limit.num_tokens = 12
    batches = [
        rows for rows, _ in in_batches([3, 9, 2, 4, 4, 13], limit, lambda rows: torch.ones(len(rows), 1))
    ]
    assert batches == [[5], [1], [3, 4, 0], [2]]


def test_a_batch_that_exhausts_the_memory_is_halved_and_so_are_those_behind_it():
    tried = []

    def embed(rows):
        tried.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("Tried to allocate")
        return torch.tensor(rows)[:, None].float()

    limit = BatchLimit("auto", CPU)
    limit.num_tokens = 100
    done = list(in_batches([10] * 12, limit, embed))
    assert tried == [10, 5, 2, 2, 2, 2, 2, 2]
    assert sorted(row for rows, _ in done for row in rows) == list(range(12))
    assert all(vectors[:, 0].tolist() == rows for rows, vectors in done)


@pytest.mark.parametrize(("batch_size", "most"), [(4, 3), ("auto", 0)])
def test_memory_too_small_for_one_text_or_a_fixed_batch_is_an_error(batch_size, most):
    def embed(rows):
        if len(rows) > most:
            raise torch.OutOfMemoryError("Tried to allocate")
        return torch.ones(len(rows), 1)

    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        list(in_batches([10] * 12, BatchLimit(batch_size, CPU), embed))


def test_equal_texts_are_encoded_once_and_come_back_at_every_place():
    seen = []

    def embed(rows):
        seen.extend("".join(map(chr, row.input_ids)) for row in rows)
        return torch.tensor([[float(sum(row.input_ids)), len(row.input_ids)] for row in rows])

    vectors = encode_distinct(TEXTS, _letters, embed, BatchLimit(2, CPU), False)
    assert sorted(seen) == sorted(set(TEXTS))
    assert vectors.tolist() == [[float(sum(map(ord, text))), len(text)] for text in TEXTS]


def test_a_long_corpus_is_read_in_pieces(monkeypatch):
    monkeypatch.setattr(modeling_encode_batches, "CHUNK_TEXTS", 3)
    sizes = []

    def read(texts):
        sizes.append(len(texts))
        return _letters(texts)

    def embed(rows):
        return torch.tensor([[float(sum(row.input_ids))] for row in rows])

    texts = [letter * count for letter in "abc" for count in range(1, 5)]
    vectors = encode_distinct(texts, read, embed, BatchLimit("auto", CPU), False)
    assert sizes == [3, 3, 3, 3]
    assert vectors[:, 0].tolist() == [float(sum(map(ord, text))) for text in texts]


@pytest.mark.parametrize("texts", [["no", "nodule", "", "is"], ["a long text", " \n ", "no", "no"]])
def test_an_empty_text_is_refused_with_its_own_position_before_any_work(encoder, texts):
    position = [index for index, text in enumerate(texts) if not text.strip()]
    encoder.forward = None  # nothing may be encoded before
    with pytest.raises(ValueError, match=rf"nothing to encode at positions \[{position[0]}\]"):
        encoder.encode(texts)
    with pytest.raises(ValueError, match=r"nothing to encode at positions \[\]"):
        encoder.encode([])


def test_a_refusal_names_the_positions_of_the_caller(encoder):
    # "no" behind a leading space is one token, and behind the instruction no token is left for the others.
    encoder.config.max_length = 4
    texts = [" There", " nodule", "   "]
    expected = encoder.encode(texts[:2], instruction="Describe no")
    assert expected.shape == (2, 32)

    def read(some):
        bad = [index for index, text in enumerate(some) if text == "bad"]
        if bad:
            raise ValueError(f"positions {bad}")
        return _letters(some)

    with pytest.raises(ValueError, match=r"positions \[1, 3\]"):
        encode_distinct(
            ["a", "bad", "the longest", "bad"], read, lambda _: torch.ones(1, 1), BatchLimit(1, CPU), False
        )


@pytest.mark.parametrize("instruction", [None, "Describe"])
def test_vectors_do_not_depend_on_batches_order_or_repeats(encoder, instruction):
    alone = torch.cat([encoder.encode(text, instruction) for text in TEXTS])
    assert (alone[0] - alone[1]).abs().max() > 1e-2, "texts look alike"
    for batch_size in (1, 2, 3, "auto"):
        together = encoder.encode(TEXTS, instruction, batch_size)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            encoder.encode(TEXTS[::-1], instruction, batch_size), alone.flip(0), atol=1e-5, rtol=0
        )


def test_max_length_reaches_the_tokenizer(encoder):
    cut = encoder.encode("There is no nodule", max_length=3)
    torch.testing.assert_close(cut, encoder.encode_text("There is"))


def test_vectors_can_be_cut_and_brought_to_unit_length(encoder):
    raw = encoder.encode(TEXTS)
    torch.testing.assert_close(encoder.encode(TEXTS, normalize=True), F.normalize(raw, dim=-1))
    torch.testing.assert_close(encoder.encode(TEXTS, truncate_dim=5), raw[:, :5])
    cut = encoder.encode(TEXTS, truncate_dim=5, normalize=True)
    torch.testing.assert_close(cut, F.normalize(raw[:, :5], dim=-1))
    encoder.config.normalize = True
    torch.testing.assert_close(encoder.encode(TEXTS, truncate_dim=5), cut)
    with pytest.raises(
        ValueError, match="normalize must not be False where the configuration normalizes, got False"
    ):
        encoder.encode(TEXTS, normalize=False)


def test_numpy_comes_back_when_asked_for_and_in_the_precision_asked_for(encoder):
    vectors = encoder.encode(TEXTS, convert_to_numpy=True)
    assert isinstance(vectors, np.ndarray)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, encoder.encode(TEXTS).numpy())
    bits = encoder.encode(TEXTS, precision="ubinary", convert_to_numpy=True)
    np.testing.assert_array_equal(bits, np.packbits(vectors > 0, axis=-1))
    ranges = torch.stack([torch.full((32,), -2.0), torch.full((32,), 2.0)])
    codes = encoder.encode(TEXTS, precision="int8", ranges=ranges)
    assert codes.dtype == torch.int8
    assert torch.equal(encoder.encode(TEXTS, precision="int8", ranges=ranges.numpy()), codes)
    assert torch.equal(
        codes, torch.tensor(((vectors + 2) / 4 * 255).clip(0, 255)).floor().sub(128).to(torch.int8)
    )


def test_refuses_what_does_not_fit_before_any_work(encoder):
    encoder.forward = None
    with pytest.raises(TypeError, match="instruction must be a string, got 32"):
        encoder.encode(TEXTS, 32)
    with pytest.raises(ValueError, match=r"U\+D800 at character 2 of the text at position 3"):
        encoder.encode([*TEXTS[:3], "no\ud800"])
    with pytest.raises(ValueError, match="truncate_dim must be between 1 and 32, got 33"):
        encoder.encode(TEXTS, truncate_dim=33)
    with pytest.raises(
        ValueError, match=r"ranges must come with int8 and uint8 and nothing else, got none with 'int8'"
    ):
        encoder.encode(TEXTS, precision="int8")
    with pytest.raises(ValueError, match=r"ranges must be \(2, 8\), .*got shape \(2, 32\)"):
        encoder.encode(TEXTS, precision="int8", ranges=torch.zeros(2, 32), truncate_dim=8)


def test_dropout_is_off_and_every_module_gets_its_mode_back(encoder):
    expected = encoder.encode(TEXTS)
    encoder.model.config.attention_dropout = 0.5
    for layer in encoder.model.layers:
        layer.self_attn.attention_dropout = 0.5
    encoder.train()
    encoder.model.layers[0].eval()
    modes = [module.training for module in encoder.modules()]
    with torch.no_grad():
        dropped = encoder(**encoder.tokenize(TEXTS[1])).pooler_output[0]
    assert (dropped - expected[1]).abs().max() > 1e-2, "dropout does nothing here"
    same = {"atol": 1e-5, "rtol": 0}
    separated = encoder.eval().encode_with_separator(TEXTS)
    similarities = encoder.compute_similarities(TEXTS[0], TEXTS[1:])
    for module, mode in zip(encoder.modules(), modes, strict=True):
        module.training = mode
    torch.testing.assert_close(encoder.encode(TEXTS), expected, **same)
    torch.testing.assert_close(encoder.encode_text(TEXTS), expected, **same)
    torch.testing.assert_close(encoder.encode_with_separator(TEXTS), separated, **same)
    torch.testing.assert_close(encoder.compute_similarities(TEXTS[0], TEXTS[1:]), similarities, **same)
    assert [module.training for module in encoder.modules()] == modes
    with pytest.raises(KeyboardInterrupt), in_eval_mode(encoder):
        raise KeyboardInterrupt
    assert [module.training for module in encoder.modules()] == modes


def test_calls_that_overlap_do_not_switch_dropout_on_for_each_other(encoder):
    encoder.train()
    encoder.model.layers[0].eval()
    modes = [module.training for module in encoder.modules()]
    first, second = in_eval_mode(encoder), in_eval_mode(encoder.model)
    with first:
        second.__enter__()
    assert [module.training for module in encoder.model.modules()] == [False] * len(
        list(encoder.model.modules())
    )
    assert encoder.training, "no other call needs this one"
    second.__exit__(None, None, None)
    assert [module.training for module in encoder.modules()] == modes
    with in_eval_mode(encoder), in_eval_mode(encoder):
        pass
    assert [module.training for module in encoder.modules()] == modes


def test_threads_with_different_lengths_get_the_vectors_of_one_alone(encoder):
    texts = [f"There is no nodule {i} effusion small present " * (1 + i % 3) for i in range(12)]
    lengths = [8, 16, 64, 64]
    expected = {length: encoder.encode(texts, max_length=length) for length in lengths}
    for layer in encoder.model.layers:
        layer.self_attn.attention_dropout = 0.5
    encoder.train()

    def differences(length: int) -> list[float]:
        calls = [encoder.encode(texts, max_length=length) for _ in range(15)]
        return [(vectors - expected[length]).abs().max().item() for vectors in calls]

    with ThreadPoolExecutor(len(lengths)) as pool:
        assert max(max(found) for found in pool.map(differences, lengths)) < 1e-5
    assert all(module.training for module in encoder.modules())


def test_encodes_inside_a_thread_and_starts_nothing(encoder):
    expected, results = encoder.encode(TEXTS), []
    children = len(list(Path("/proc/self/task").iterdir()))
    thread = threading.Thread(target=lambda: results.append(encoder.encode(TEXTS)))
    thread.start()
    thread.join()
    torch.testing.assert_close(results[0], expected, atol=1e-5, rtol=0)
    assert len(list(Path("/proc/self/task").iterdir())) <= children + torch.get_num_threads()


def test_the_bar_counts_texts_repeats_included(encoder, capsys):
    encoder.encode(TEXTS, show_progress=True, batch_size=2)
    shown = capsys.readouterr().err
    assert "Encoding texts" in shown
    assert "7/7" in shown
    encoder.encode(TEXTS)
    assert capsys.readouterr().err == ""


def test_an_interrupted_call_leaves_the_model_as_it_was(encoder):
    expected = encoder.encode(TEXTS)
    encoder.train()
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    handle = encoder.model.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        encoder.encode(TEXTS, batch_size=1, show_progress=True)
    handle.remove()
    assert encoder.training
    torch.testing.assert_close(encoder.eval().encode(TEXTS), expected, atol=1e-5, rtol=0)


def test_half_precision_weights_give_float32_vectors_near_those_of_full_precision(encoder):
    expected = encoder.encode(TEXTS)
    half = encoder.bfloat16().encode(TEXTS)
    assert half.dtype == torch.float32
    assert F.cosine_similarity(half, expected).min() > 0.99
