import numpy as np
import pytest
import torch

from radtower.modeling.llm_biencoder.modeling_vector_precision import (
    check_precision,
    quantize_vectors,
    shorten,
)


def test_bits_are_packed_first_dimension_highest_and_zero_is_not_positive():
    vectors = torch.tensor([[0.3, -1, 0, 2, -0.1, 5, 1, -2, 1, 1], [-1.0] * 9 + [1]])
    # 1001 0110 | 11000000 and 0000 0000 | 0100 0000
    assert quantize_vectors(vectors, "ubinary").tolist() == [[150, 192], [0, 64]]
    binary = quantize_vectors(vectors, "binary")
    assert binary.dtype == torch.int8
    assert binary.tolist() == [[22, 64], [-128, -64]]


def test_eight_bits_number_the_steps_of_each_dimension_and_clamp_beyond():
    ranges = torch.tensor([[0.0, -1.0, 3.0], [255.0, 1.0, 3.0]])
    vectors = torch.tensor([[0.0, -1.0, 3.0], [7.9, 0.0, 3.5], [900.0, 1.5, 2.0]])
    codes = quantize_vectors(vectors, "uint8", ranges)
    assert codes.dtype == torch.uint8
    assert codes.tolist() == [[0, 0, 0], [7, 127, 0], [255, 255, 0]]
    assert quantize_vectors(vectors, "int8", ranges).tolist() == [
        [-128, -128, -128],
        [-121, -1, -128],
        [127, 127, -128],
    ]


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_agrees_with_sentence_transformers(precision):
    quantization = pytest.importorskip("sentence_transformers.util.quantization")
    vectors = torch.randn(50, 20)
    ranges = torch.stack([vectors[:40].amin(0), vectors[:40].amax(0)]) if precision.endswith("int8") else None
    theirs = quantization.quantize_embeddings(
        vectors.numpy(), precision, ranges=None if ranges is None else ranges.numpy()
    )
    ours = quantize_vectors(vectors, precision, ranges).numpy()
    assert ours.dtype == theirs.dtype
    # The last bit of a quotient may differ, and with it the step next to it.
    assert np.mean(ours == theirs) > 0.99
    if not precision.endswith("int8"):
        np.testing.assert_array_equal(ours, theirs)


def test_the_code_of_a_vector_does_not_depend_on_the_others():
    vectors, ranges = torch.randn(6, 4), torch.tensor([[-3.0] * 4, [3.0] * 4])
    together = quantize_vectors(vectors, "int8", ranges)
    assert torch.equal(together, torch.cat([quantize_vectors(v[None], "int8", ranges) for v in vectors]))


def test_cuts_then_normalizes():
    vectors = torch.tensor([[3.0, 4.0, 12.0]])
    torch.testing.assert_close(shorten(vectors, 2, True), torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(shorten(vectors, None, True), torch.tensor([[3.0, 4.0, 12.0]]) / 13)
    assert shorten(vectors, 1, False).tolist() == [[3.0]]


@pytest.mark.parametrize("size", [0, 4, -1])
def test_refuses_dimensions_that_are_not_there(size):
    with pytest.raises(ValueError, match=f"truncate_dim must be between 1 and 3, got {size}"):
        shorten(torch.ones(1, 3), size, False)


@pytest.mark.parametrize(
    ("precision", "ranges", "message"),
    [
        ("int4", None, r"precision must be one of \['float32', .*\], got 'int4'"),
        ("uint8", None, "ranges must come with int8 and uint8 and nothing else, got none with 'uint8'"),
        ("binary", torch.zeros(2, 3), r"nothing else, got shape \(2, 3\) with 'binary'"),
        (
            "int8",
            torch.zeros(2, 4),
            r"ranges must be \(2, 3\), minimum above maximum nowhere, got shape \(2, 4\)",
        ),
        (
            "int8",
            torch.tensor([[1.0, 0, 0], [0, 1, 1]]),
            r"minimum above maximum nowhere, got shape \(2, 3\)",
        ),
        ("int8", torch.full((2, 3), torch.nan), r"minimum above maximum nowhere, got shape \(2, 3\)"),
    ],
)
def test_refuses_a_precision_without_its_ranges(precision, ranges, message):
    with pytest.raises(ValueError, match=message):
        check_precision(precision, ranges, 3)
