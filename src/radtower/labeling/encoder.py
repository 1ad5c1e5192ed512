"""Label reports with a fine-tuned encoder: no prompt, no server, no cost per report."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from radtower.labeling.findings import Status
from radtower.labeling.report_labels import ReportLabels, label_in_batches

PRESENT_FROM = 0.5  # P(present) from which a finding counts as present


class EncoderLabeler:
    """A multi-label ``AutoModelForSequenceClassification`` behind the backend interface of the labeler.

    It tells present from absent only: what the report does not mention comes out as absent, and nothing as
    uncertain; the score says how sure it is.

    Args:
        folder: Model folder with its tokenizer; ``id2label`` are finding keys.
        max_length: Tokens read of each report.
        batch_size: Reports per forward pass.

    Raises:
        ValueError: If the model folder lacks some of its weights.
    """

    name = "encoder"
    prompt_version: str | None = None

    def __init__(self, folder: str | Path, max_length: int = 512, batch_size: int = 32) -> None:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(
                f"folder must hold a trained labeler, got {folder} without {sorted(report['missing_keys'])}. "
                "Train one with radtower train labeler."
            )
        self.model: Any = model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.max_length = max_length
        self.batch_size = batch_size
        self.model_id = Path(folder).name

    @property
    def keys(self) -> tuple[str, ...]:
        """Findings that the model answers for, in column order."""
        return tuple(self.model.config.id2label[column] for column in range(self.model.config.num_labels))

    @property
    def settings(self) -> Mapping[str, str | int | float | bool | None]:
        """What the answers depend on beside the name of the model."""
        return {"max_length": self.max_length, "present_from": PRESENT_FROM}

    def label(self, reports: Iterable[str]) -> Iterator[tuple[int, ReportLabels]]:
        """Label normalized reports, in batches of similar length."""
        return label_in_batches(reports, self._label_batch, self.keys, self.batch_size)

    @torch.no_grad()
    def _label_batch(self, reports: list[str]) -> list[ReportLabels]:
        inputs = self.tokenizer(
            reports, max_length=self.max_length, truncation=True, padding=True, return_tensors="pt"
        )
        masks = inputs["attention_mask"]
        scores = torch.sigmoid(self.model(input_ids=inputs["input_ids"], attention_mask=masks).logits)
        return [
            self._labels(row.tolist(), int(tokens))
            for row, tokens in zip(scores, masks.sum(dim=1), strict=True)
        ]

    def _labels(self, scores: list[float], tokens_in: int) -> ReportLabels:
        statuses = [Status.PRESENT if score >= PRESENT_FROM else Status.ABSENT for score in scores]
        return ReportLabels(
            status=dict(zip(self.keys, statuses, strict=True)),
            score=dict(zip(self.keys, scores, strict=True)),
            evidence=dict.fromkeys(self.keys),
            tokens_in=tokens_in,
            tokens_out=0,
            cost_usd=0.0,
        )
