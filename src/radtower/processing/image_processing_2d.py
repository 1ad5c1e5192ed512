"""2D images of any depth in, 8-bit images out, as image processors of transformers expect them.

Pillow itself clips what is beyond 8 bits: a 16-bit radiograph becomes white.
"""

from typing import Any

import torch
from transformers.image_transforms import to_pil_image

MAX_8_BIT = 255
TRANSPARENT_MODES = ("RGBA", "LA", "PA", "RGBa", "La")  # of Pillow, as are the next
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def to_8_bit(image: Any, num_channels: int = 3) -> Any:
    """Make an 8-bit image of one channel or three.

    Gray values of more than 8 bits are spread linearly over the range that the image itself uses, so that
    nothing is clipped and nothing wraps around; absolute units are lost. Whoever knows a window, as for
    Hounsfield units, applies it before. Transparent pixels lie on black. Color becomes luminance where one
    channel is asked for.

    Args:
        image: A Pillow image of one frame, or an array or tensor: ``(Y, X)`` gray values of any type, or
            ``(Y, X, 3)`` of uint8.
        num_channels: 3 for RGB, 1 for gray.

    Returns:
        A Pillow image in mode ``RGB`` or ``L``.

    Raises:
        TypeError: If it is neither, such as a path that nobody opened.
        ValueError: If an array has another shape, values are not finite, or values of more than 8 bits are
            all the same.
    """
    if not hasattr(image, "getchannel"):  # Pillow may not be imported here: remote code
        image = _from_array(image)
    elif image.mode in DEEP_MODES:
        image = _from_array(_deep_values(image))
    elif image.mode in TRANSPARENT_MODES or "transparency" in image.info:
        image = _on_black(image.convert("RGBA"))
    elif image.mode != "L":
        image = image.convert("RGB")  # palettes, colors of print and camera, two levels
    return image.convert("RGB" if num_channels == 3 else "L")


def _deep_values(image: Any) -> torch.Tensor:
    """``(Y, X)``, as they are stored."""
    dtype, mode = (torch.float32, "F") if image.mode == "F" else (torch.int32, "I")
    values = torch.frombuffer(bytearray(image.convert(mode).tobytes()), dtype=dtype)
    return values.reshape(image.height, image.width)


def _on_black(image: Any) -> Any:
    opaque = image.convert("RGB")
    canvas = opaque.point(lambda value: 0)
    canvas.paste(opaque, mask=image.getchannel("A"))
    return canvas


def _from_array(array: Any) -> Any:
    if not hasattr(array, "shape"):
        raise TypeError(
            f"image must be a Pillow image, an array or a tensor, got {type(array).__name__}. Open it first."
        )
    pixels = torch.as_tensor(array).cpu()
    shape = tuple(pixels.shape)
    is_color = len(shape) == 3 and shape[2] == 3 and pixels.dtype == torch.uint8
    if not (len(shape) == 2 or is_color) or 0 in shape:
        raise ValueError(
            f"an image must be (Y, X), or (Y, X, 3) of uint8, got shape {shape} of {pixels.dtype}. Move "
            "channels to the end, and give several images as a list."
        )
    if pixels.dtype != torch.uint8:
        pixels = _spread(pixels.to(torch.float64))
    pixels = pixels if is_color else pixels[:, :, None]
    return to_pil_image(pixels.numpy(), do_rescale=False, input_data_format="channels_last")


def _spread(values: torch.Tensor) -> torch.Tensor:
    num_bad = int((~values.isfinite()).sum())
    low, high = values.min(), values.max()
    if num_bad or not high > low:
        found = f"{num_bad} that are not finite" if num_bad else f"{low.item():g} everywhere"
        raise ValueError(
            f"gray values of more than 8 bits must be finite and not all the same, got {found}. "
            "Leave the image out, or convert it to 8 bits."
        )
    return ((values - low) * (MAX_8_BIT / (high - low)) + 0.5).to(torch.uint8)
