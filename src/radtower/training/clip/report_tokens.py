"""Reports as tokens, for a text tower that is trained: tokenized once, padded per batch.

Axes: N studies, B studies of a batch, T tokens.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, default_data_collator

from radtower.data.datasets import StudyDataset, as_bytes
from radtower.modeling.llm_biencoder.modeling_text_inputs import TokenRow, pad_rows
from radtower.processing.processing_medclip import MedCLIPProcessor

TEXTS_AT_ONCE = 1024


class StudiesWithReports(StudyDataset):
    """Studies whose samples also have the tokens of their report.

    Args:
        *args: Of :class:`StudyDataset`, as are the keyword arguments.
        token_ids: N tensors ``(T,)``, see :func:`tokenize_reports`.

    Raises:
        ValueError: If there are not as many as volumes.
    """

    def __init__(self, *args: Any, token_ids: Sequence[torch.Tensor], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if len(token_ids) != len(self):
            raise ValueError(
                f"token_ids must have one row per volume, got {len(token_ids)} for {len(self)}. "  # noqa: S608 -- prose
                "Select both from the same manifest."
            )
        self.token_ids = list(token_ids)

    def sha256(self) -> str:
        """Hash of all rows in order, with the tokens that are read of their reports."""
        digest = hashlib.sha256(super().sha256().encode())
        for ids in self.token_ids:
            digest.update(f"{len(ids)} {ids.dtype}".encode())
            digest.update(as_bytes(ids))
        return digest.hexdigest()

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**super().__getitem__(index), "input_ids": self.token_ids[index]}


class ReportPadding:
    """Collator that pads reports to the longest of the batch; all else is stacked.

    Args:
        tokenizer: Knows the padding token and the side.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, samples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Samples with or without ``input_ids`` -> a batch, with their ``attention_mask`` ``(B, T)``."""
        rest = [{name: v for name, v in sample.items() if name != "input_ids"} for sample in samples]
        batch: dict[str, torch.Tensor] = default_data_collator(rest)
        if "input_ids" in samples[0]:
            rows = [TokenRow(sample["input_ids"].tolist(), None) for sample in samples]
            batch |= pad_rows(self.tokenizer, rows)
        return batch


def tokenize_reports(processor: MedCLIPProcessor, reports: Sequence[str]) -> list[torch.Tensor]:
    """Return the tokens of each report, cut as the processor does; equal reports share a tensor.

    Raises:
        ValueError: If a report is empty.
    """
    empty = [position for position, report in enumerate(reports) if not report.strip()]
    if empty:
        raise ValueError(f"reports must not be empty, got nothing to read at positions {empty}. Remove them.")
    distinct = list(dict.fromkeys(reports))
    found: dict[str, torch.Tensor] = {}
    for start in range(0, len(distinct), TEXTS_AT_ONCE):
        part = distinct[start : start + TEXTS_AT_ONCE]
        inputs = processor(text=part)
        pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        found |= {text: ids[mask == 1].clone() for text, (ids, mask) in zip(part, pairs, strict=True)}
    return [found[report] for report in reports]
