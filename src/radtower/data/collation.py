"""Samples -> batch for the report labeler; the image samples need no more than PyTorch's own stacking."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class ReportCollator:
    """Tokenize reports and pad them to the longest of the batch.

    Args:
        tokenizer: With a pad token.
        max_length: Tokens kept of each report.
    """

    def __init__(self, tokenizer: Any, max_length: int = 512) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Samples of ``text`` and ``labels`` ``(F,)`` -> ``input_ids``, ``attention_mask``, ``labels``."""
        inputs = self.tokenizer(
            [sample["text"] for sample in samples],
            max_length=self.max_length,
            truncation=True,
            padding=True,
            return_tensors="pt",
        )
        return {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "labels": torch.stack([torch.as_tensor(sample["labels"]) for sample in samples]),
        }
