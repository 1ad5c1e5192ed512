import numpy as np
import pytest
import torch
from PIL import Image

from radtower.processing.image_processing_2d import to_8_bit

DEEP = np.array([[100, 1100], [40100, 20100]])  # spread over 40,000 steps


def _array(image):
    return np.array(image).tolist()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_gray_values_are_spread_over_their_own_range(dtype):
    # (1000 / 40000) * 255 = 6.4 and (20000 / 40000) * 255 = 127.5, rounded half up.
    expected = [[0, 6], [255, 128]]
    for image in (Image.fromarray(DEEP.astype(dtype)), DEEP.astype(dtype)):
        gray = to_8_bit(image, num_channels=1)
        assert gray.mode == "L"
        assert _array(gray) == expected
        assert _array(to_8_bit(image)) == [[[v, v, v] for v in row] for row in expected]


def test_both_byte_orders_and_negative_values_keep_their_order():
    big = Image.frombytes("I;16B", (2, 1), b"\x00\x10\xff\xf0")
    assert _array(to_8_bit(big, 1)) == [[0, 255]]
    hounsfield = torch.tensor([[-1000, 0, 1000]], dtype=torch.int16)
    assert _array(to_8_bit(hounsfield, 1)) == [[0, 128, 255]]
    assert _array(to_8_bit(torch.tensor([[0.25, 0.5]]), 1)) == [[0, 255]]
    assert _array(to_8_bit(np.array([[True, False]]), 1)) == [[255, 0]]


def test_8_bit_images_keep_their_values():
    gray = np.array([[10, 200, 30]], dtype=np.uint8)
    assert _array(to_8_bit(gray, 1)) == gray.tolist()
    assert _array(to_8_bit(Image.fromarray(gray))) == [[[10] * 3, [200] * 3, [30] * 3]]
    color = np.array([[[10, 20, 30], [0, 255, 7]]], dtype=np.uint8)
    assert _array(to_8_bit(torch.from_numpy(color))) == color.tolist()
    assert _array(to_8_bit(Image.fromarray(color))) == color.tolist()
    # ITU-R 601-2 luminance: 0.299 R + 0.587 G + 0.114 B.
    assert _array(to_8_bit(color, 1)) == [[18, 150]]


def test_other_modes_of_pillow():
    assert _array(to_8_bit(Image.new("1", (1, 1), 1))) == [[[255, 255, 255]]]
    assert _array(to_8_bit(Image.new("CMYK", (1, 1), (0, 255, 255, 0)))) == [[[255, 0, 0]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert _array(to_8_bit(palette)) == [[[1, 2, 3], [40, 50, 60]]]


def test_transparent_pixels_lie_on_black():
    image = Image.new("RGBA", (3, 1), (200, 100, 50, 255))
    image.putpixel((1, 0), (200, 100, 50, 0))
    image.putpixel((2, 0), (200, 100, 50, 51))  # a fifth
    assert _array(to_8_bit(image)) == [[[200, 100, 50], [0, 0, 0], [40, 20, 10]]]
    assert _array(to_8_bit(Image.new("LA", (1, 1), (90, 0)), 1)) == [[0]]
    gray = Image.new("L", (2, 1), 9)
    gray.info["transparency"] = 9  # as a PNG without alpha channel says it
    assert _array(to_8_bit(gray, 1)) == [[0, 0]]


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.full((2, 2), 700, np.uint16), "not all the same, got 700 everywhere"),
        (Image.fromarray(np.full((2, 2), 700, np.uint16)), "not all the same, got 700 everywhere"),
        (np.array([[0.0, np.nan]]), "must be finite and not all the same, got 1 that are not finite"),
        (Image.fromarray(np.array([[0.0, np.inf]], np.float32)), "got 1 that are not finite"),
        (np.zeros((3, 4, 5), np.uint8), r"must be \(Y, X\), .* got shape \(3, 4, 5\) of torch.uint8"),
        (np.zeros((4, 5, 3), np.float32), r"got shape \(4, 5, 3\) of torch.float32"),
        (np.zeros((0, 5), np.uint8), r"got shape \(0, 5\)"),
    ],
)
def test_refuses_what_has_no_meaning_as_an_image(image, match):
    with pytest.raises(ValueError, match=match):
        to_8_bit(image)


def test_refuses_a_path():
    with pytest.raises(TypeError, match="must be a Pillow image, an array or a tensor, got str"):
        to_8_bit("scan.png")
