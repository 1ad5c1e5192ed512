"""Scans and reports in, model inputs out: an image processor and a tokenizer saved as one folder."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import ImagesKwargs

from .image_processing_2d import to_8_bit
from .processing_call_settings import TEXT_OUTPUTS, split_settings, text_arguments


class MedCLIPProcessor(ProcessorMixin):
    """Processor of a :class:`MedCLIPModel`.

    Args:
        image_processor: Prepares scans, such as :class:`CT3DImageProcessor`; or 2D images, such as those of
            transformers, which are handed 8-bit images of as many channels as they have means.
        tokenizer: Tokenizer of the text tower.
        max_length: Tokens kept of a report. The seed cut at 128 and lost most impressions; 512 holds
            95 % of CT-RATE's reports whole.
        instruction: Put in front of every text, ``{text}`` marking its place. None reads texts as they are.

    Raises:
        ValueError: If ``max_length`` is not positive, or ``instruction`` has no ``{text}``.
    """

    # Remote code may not open files. The package plugs its reader of 2D images in.
    image_reader: Callable[[Any], Any] | None = None

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        max_length: int = 512,
        instruction: str | None = None,
        **kwargs: Any,
    ) -> None:
        if max_length < 1:
            raise ValueError(f"max_length must be positive, got {max_length}. Use e.g. 512.")
        if instruction is not None and "{text}" not in instruction:
            raise ValueError(
                f"instruction must contain {{text}}, got {instruction!r}. Mark where the report belongs."
            )
        self.max_length = max_length
        self.instruction = instruction
        if tokenizer is not None and tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        spacings_mm: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare scans, reports, or both.

        Args:
            images: See :meth:`CT3DImageProcessor.preprocess`; for 2D towers Pillow images, arrays, or paths,
                one or several, see :func:`to_8_bit`. None skips them.
            text: One report or several. None skips them.
            spacings_mm: Voxel sizes in (Z, Y, X) order, for images given as bare arrays.
            kwargs: Settings of the parts for this call, flat or in ``text_kwargs``, ``images_kwargs`` and
                ``common_kwargs``; those of a part that is not asked are of no effect. Texts: those of a
                tokenizer; without them texts are padded to the longest, or as the tokenizer was made to
                (``padding``), and cut at the processor's ``max_length``, whatever length the tokenizer was
                made for. Images: those of the image processor. ``return_tensors`` is ``"pt"`` unless given.

        Returns:
            ``pixel_values`` and / or ``input_ids`` and ``attention_mask``; with settings such as
            ``return_length``, what they ask for.

        Raises:
            TypeError: If a setting is unknown, a text is not a string, or a path is given where nothing can
                open it.
            ValueError: If both are missing, a text is empty, ``max_length`` is below 1, a setting is given
                twice, or cannot be honored.
        """
        if images is None and text is None:
            raise ValueError("images or text must be given, got neither. Pass at least one.")
        of_texts, of_images = split_settings(kwargs, self._image_settings)
        data: dict[str, Any] = {}
        if images is not None:
            given = {} if spacings_mm is None else {"spacings_mm": spacings_mm}
            data |= self._prepare(images, {"return_tensors": "pt"} | of_images | given)
        if text is not None:
            data |= self._tokenize([text] if isinstance(text, str) else list(text), of_texts)
        return BatchFeature(data)

    @property
    def _image_settings(self) -> set[str]:
        own = getattr(self.image_processor, "valid_kwargs", ImagesKwargs)
        return {*ImagesKwargs.__annotations__, *own.__annotations__}

    def _prepare(self, images: Any, settings: dict[str, Any]) -> dict[str, Any]:
        if self.reads_volumes:
            return self.image_processor(images, **settings)
        if settings.get("input_data_format") is not None:
            raise ValueError(
                f"input_data_format must be left out, got {settings['input_data_format']!r}: images are made "
                "8-bit ones first. Pass (Y, X), or (Y, X, 3) of uint8."
            )
        return self.image_processor(self._as_8_bit(images), **settings)

    @property
    def reads_volumes(self) -> bool:
        """Whether the image processor is that of the 3D tower."""
        # Not by class: remote code exists in two copies whose classes differ.
        return hasattr(self.image_processor, "windows_hu")

    def _as_8_bit(self, images: Any) -> list[Any]:
        is_batch = isinstance(images, (list, tuple)) or len(getattr(images, "shape", ())) == 4
        num_channels = len(self.image_processor.image_mean)
        return [to_8_bit(self._opened(image), num_channels) for image in (images if is_batch else [images])]

    def _opened(self, image: Any) -> Any:
        if not isinstance(image, (str, os.PathLike)):
            return image
        if self.image_reader is None:
            raise TypeError(
                f"images must be Pillow images or arrays where radtower is not installed, got the path "
                f"{image}. Open it with PIL.Image.open."
            )
        return self.image_reader(image)

    def _tokenize(self, texts: list[str], settings: dict[str, Any]) -> dict[str, Any]:
        # A length that came with the tokenizer is not taken: many of the Hub say 128.
        padding = self.tokenizer.init_kwargs.get("padding")
        defaults = {
            "padding": True if padding is None else padding,
            "truncation": True,
            "max_length": self.max_length,
            "return_tensors": "pt",
        }
        arguments = text_arguments(settings, defaults)
        if not texts:
            raise ValueError("text must be at least one report, got none. Leave the call out.")
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(
                    f"text must be strings, got {type(text).__name__} at position {position}. "
                    "Decode bytes, and leave out missing reports."
                )
        empty = [row for row, text in enumerate(texts) if not text.strip()]
        if empty:
            raise ValueError(
                f"text must not be empty, got nothing to read at positions {empty}. Remove them."
            )
        if self.instruction is not None:
            texts = [self.instruction.replace("{text}", text) for text in texts]
        inputs = self.tokenizer(texts, **arguments)
        asked = [name for setting, name in TEXT_OUTPUTS.items() if arguments.get(setting)]
        return {name: inputs[name] for name in ("input_ids", "attention_mask", *asked)}
