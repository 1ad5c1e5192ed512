"""Label reports with a fine-tuned encoder: no prompt, no server, no cost per report.

Axes in this file: B windows of a batch, F findings, S sentences, T tokens, W windows of a report.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from radtower.labeling.classifier.evidence import EVIDENCE_RULE, quote, sentence_mass
from radtower.labeling.classifier.loaded_classifier import load_classifier
from radtower.labeling.classifier.report_windows import (
    WINDOW_RULE,
    ReportWindow,
    WindowedReport,
    read_in_windows,
)
from radtower.labeling.findings import FindingsSet, Status
from radtower.labeling.pretrained.device import find_device
from radtower.labeling.pretrained.source import find_source
from radtower.labeling.report_labels import ReportLabels, label_in_batches

PRESENT_FROM = 0.5  # P(present) from which a finding counts as present
# Padded tokens of a batch, and reports that are read together: more are slower on a CPU, and fewer leave an
# accelerator idle.
CPU_TOKENS, ACCELERATOR_TOKENS = 1024, 32768
CPU_REPORTS, ACCELERATOR_REPORTS = 16, 512


@dataclass(frozen=True)
class _WindowAnswer:
    """``(F,)`` logits of a window; ``(F,)`` and ``(F, S)`` attention, None where the model has none."""

    logits: torch.Tensor
    log_normalizer: torch.Tensor | None
    mass: torch.Tensor | None


class EncoderLabeler:
    """A multi-label ``AutoModelForSequenceClassification`` behind the backend interface of the labeler.

    It tells present from absent only: what the report does not mention comes out as absent, and nothing as
    uncertain; the score, ``sigmoid(logit / temperature)``, says how sure it is.

    A report that is longer than the model reads is read in windows of whole sentences; nothing is cut off.
    For our labelers the attention of a finding then runs over the tokens or sentences of all windows, as it
    does within one. Of another model, which has one logit per text, the largest counts: a finding is present
    where some window says so.

    Our labelers quote the sentence that a finding was read from; others have no evidence.

    Args:
        path: Model folder with its tokenizer, or Hub id.
        findings: Its labels must be keys, names or synonyms of this set. None takes them as keys.
        max_length: Tokens of a window. None takes what the model was made for.
        threshold: P(present) from which a finding counts as present.
        batch_size: Windows per pass of the model; ``"auto"`` goes by tokens, and halves what does not fit.
        dtype: ``float32``, or ``bfloat16`` for half the memory; bf16 rounds scores in the third digit.
        device: None takes a GPU where there is one.
        should_skip_unmatched: Whether labels that mean no finding of the set are left out, not refused.
        is_remote_code_trusted: Whether code that comes with the model may be run.

    Attributes:
        num_windowed_reports: Reports so far that were read in several windows.
        num_split_sentences: Sentences so far that are longer than a window and were cut.

    Raises:
        ValueError: If the threshold, batch size, dtype or device is none, or the model does not fit; see
            :func:`load_classifier`.
    """

    name = "encoder"
    prompt_version: str | None = None

    def __init__(  # noqa: PLR0913 -- one argument per setting of the command
        self,
        path: str | Path,
        findings: FindingsSet | None = None,
        *,
        max_length: int | None = None,
        threshold: float = PRESENT_FROM,
        batch_size: int | Literal["auto"] = "auto",
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str | None = None,
        should_skip_unmatched: bool = False,
        is_remote_code_trusted: bool = False,
    ) -> None:
        _check(threshold, batch_size, dtype)
        self.device = find_device(device)
        source = find_source(path)
        self.classifier = load_classifier(
            source,
            findings,
            max_length=max_length,
            dtype=getattr(torch, dtype),
            should_skip_unmatched=should_skip_unmatched,
            is_remote_code_trusted=is_remote_code_trusted,
        )
        self.classifier.model.to(self.device)
        self.model_id = source.name if isinstance(source, Path) else source
        self.threshold = threshold
        self.batch_size = batch_size
        self.dtype = dtype
        self.num_windowed_reports = 0
        self.num_split_sentences = 0
        is_cpu = self.device.type == "cpu"
        self._num_tokens = CPU_TOKENS if is_cpu else ACCELERATOR_TOKENS
        self._num_reports = CPU_REPORTS if is_cpu else ACCELERATOR_REPORTS

    @property
    def keys(self) -> tuple[str, ...]:
        """Findings that the model answers for, in the order of the set, or of its columns without one."""
        return tuple(self.classifier.columns)

    @property
    def settings(self) -> Mapping[str, str | int | float | bool | None]:
        """What the answers depend on beside the findings."""
        return {
            "model_sha256": self.classifier.sha256,
            "temperature": self.classifier.temperature,
            "threshold": self.threshold,
            "max_length": self.classifier.max_length,
            "dtype": self.dtype,
            "windows": WINDOW_RULE,
            "evidence": EVIDENCE_RULE if self.classifier.has_attention else None,
        }

    def notes(self) -> list[str]:
        """Return sentences about reports so far that are longer than the model reads at a time."""
        most = f"more than the {self.classifier.max_length} tokens of a window"
        notes = []
        if self.num_windowed_reports:
            notes.append(f"{self.num_windowed_reports} reports have {most}: read in several, none cut off.")
        if self.num_split_sentences:
            notes.append(f"{self.num_split_sentences} sentences have {most}: read in pieces.")
        return notes

    def label(self, reports: Iterable[str]) -> Iterator[tuple[int, ReportLabels]]:
        """Label normalized reports, those of similar length together."""
        return label_in_batches(reports, self._label_batch, self.keys, self._num_reports)

    def _label_batch(self, reports: list[str]) -> list[ReportLabels]:
        tokenizer, max_length = self.classifier.tokenizer, self.classifier.max_length
        parts = [read_in_windows(tokenizer, report, max_length) for report in reports]
        windows = [(window, len(part.sentences)) for part in parts for window in part.windows]
        answers = iter(self._answers(windows))
        labels = [self._labels(part, [next(answers) for _ in part.windows]) for part in parts]
        self.num_windowed_reports += sum(len(part.windows) > 1 for part in parts)
        self.num_split_sentences += sum(part.num_split_sentences for part in parts)
        return labels

    def _answers(self, windows: Sequence[tuple[ReportWindow, int]]) -> list[_WindowAnswer]:
        """Run the model over windows and their numbers of sentences, the longest first."""
        order = sorted(range(len(windows)), key=lambda place: -len(windows[place][0].input_ids))
        answers: dict[int, _WindowAnswer] = {}
        start = 0
        while start < len(order):
            length = len(windows[order[start]][0].input_ids)
            size = max(1, self._num_tokens // length) if self.batch_size == "auto" else self.batch_size
            batch = order[start : start + size]
            try:
                found = self._forward([windows[place] for place in batch])
            except torch.OutOfMemoryError:
                if self.batch_size != "auto" or len(batch) == 1:
                    raise
                found = None
            if found is None:  # outside the handler, which would keep the tensors of the failed batch alive
                self._num_tokens = len(batch) // 2 * length
                continue
            answers.update(zip(batch, found, strict=True))
            start += len(batch)
        return [answers[place] for place in range(len(windows))]

    @torch.no_grad()
    def _forward(self, windows: Sequence[tuple[ReportWindow, int]]) -> list[_WindowAnswer]:
        columns = list(self.classifier.columns.values())
        ids = [torch.tensor(window.input_ids) for window, _ in windows]
        # On the right whatever the tokenizer says: BERT counts positions from the left, padding included.
        stacked = torch.nn.utils.rnn.pad_sequence(ids, True, self.classifier.tokenizer.pad_token_id or 0)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], True, 0)
        output = self.classifier.model(
            input_ids=stacked.to(self.device), attention_mask=mask.to(self.device), return_dict=True
        )
        logits = output.logits.double().cpu()[:, columns]
        if not self.classifier.has_attention:
            return [_WindowAnswer(row, None, None) for row in logits]
        normalizers = output.log_normalizer.double().cpu()[:, columns]
        weights = output.token_weights.double().cpu()[:, columns]
        answers = []
        for row, (window, num_sentences) in enumerate(windows):
            mass = sentence_mass(weights[row][:, mask[row].bool()], window.sentence_of, num_sentences)
            answers.append(_WindowAnswer(logits[row], normalizers[row], mass))
        return answers

    def _labels(self, report: WindowedReport, answers: Sequence[_WindowAnswer]) -> ReportLabels:
        logits, mass = join_windows(answers, is_by_sentence=self.classifier.is_by_sentence)
        scores = torch.sigmoid(logits / self.classifier.temperature).tolist()
        statuses = [Status.PRESENT if score >= self.threshold else Status.ABSENT for score in scores]
        quotes: list[str | None] = [None] * len(scores)
        if mass is not None:
            rows = zip(statuses, mass.tolist(), strict=True)
            quotes = [quote(status, row, report.sentences) for status, row in rows]
        return ReportLabels(
            status=dict(zip(self.keys, statuses, strict=True)),
            score=dict(zip(self.keys, scores, strict=True)),
            evidence=dict(zip(self.keys, quotes, strict=True)),
            tokens_in=report.num_tokens,
            tokens_out=0,
            cost_usd=0.0,
        )


def join_windows(
    answers: Sequence[_WindowAnswer], *, is_by_sentence: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Put W windows together: ``(F,)`` logits, and ``(F, S)`` attention if the model has any."""
    logits = torch.stack([answer.logits for answer in answers])
    normalizers = [answer.log_normalizer for answer in answers if answer.log_normalizer is not None]
    masses = [answer.mass for answer in answers if answer.mass is not None]
    if not normalizers:
        return logits.amax(dim=0), None
    # Attention over all tokens, exactly: what each window divided by says how much of it the window has.
    shares = torch.stack(normalizers).softmax(dim=0)
    joined = logits.logsumexp(dim=0) if is_by_sentence else (shares * logits).sum(dim=0)
    return joined, (shares[..., None] * torch.stack(masses)).sum(dim=0)


def _check(threshold: float, batch_size: int | str, dtype: str) -> None:
    if not 0 < threshold < 1:
        raise ValueError(
            f"threshold must be between 0 and 1, got {threshold}. Use {PRESENT_FROM} where none was chosen."
        )
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
        raise ValueError(f"batch_size must be 'auto' or at least 1, got {batch_size!r}. Use 'auto'.")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}. Use float32 on a CPU.")
