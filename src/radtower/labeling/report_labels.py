"""What a backend says about one report, why a run stops, and the loop of backends that work on lists."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from radtower.labeling.findings import Status

# Sorting this many batches by length leaves little padding, and answers still come soon.
BATCHES_PER_WINDOW = 16


@dataclass(frozen=True, kw_only=True)
class ReportLabels:
    """What a backend says about one report; the dictionaries are keyed by finding, all findings in order.

    Either every status is set, or every status is None and ``error`` is a short reason: a code, never text
    of the report. Codes that begin with ``reply:`` say what the model got wrong: it was asked, and would say
    the same again. Every other code (``http_500``, ``timeout``, ``budget``) says that there was no answer.
    ``score`` is P(present), None where none was measured. Tokens and cost are None where unknown.
    ``num_dropped_evidence`` counts quotes that are not in the report.
    """

    status: dict[str, Status | None]
    score: dict[str, float | None]
    evidence: dict[str, str | None]
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost_usd: float | None = None
    error: str | None = None
    num_dropped_evidence: int = 0

    @classmethod
    def failed(
        cls,
        keys: Sequence[str],
        error: str,
        *,
        tokens_in: int | None = None,
        tokens_out: int | None = None,
        cost_usd: float | None = None,
    ) -> "ReportLabels":
        """Return the labels of a report that could not be labeled."""
        return cls(
            status=dict.fromkeys(keys),
            score=dict.fromkeys(keys),
            evidence=dict.fromkeys(keys),
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost_usd=cost_usd,
            error=error,
        )


class StopLabeling(Exception):
    """Raised by a backend when going on is pointless; what was answered before is kept.

    Args:
        reason: Code for the reports that are left, such as ``budget``, ``unreachable`` or ``unauthorized``.
        message: For the user: what happened, and how to fix it. No text of a report, no key.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def label_in_batches(
    reports: Iterable[str],
    label_batch: Callable[[list[str]], Sequence[ReportLabels]],
    keys: Sequence[str],
    batch_size: int,
) -> Iterator[tuple[int, ReportLabels]]:
    """Label reports in batches of similar length; a failure costs only the reports that fail alone as well.

    Args:
        reports: Normalized texts; at most ``BATCHES_PER_WINDOW`` batches are held at a time.
        label_batch: Gives one result per report, in order. It may raise.
        keys: Findings, for the reports that could not be labeled.
        batch_size: Reports per call.

    Yields:
        Position in ``reports`` and labels, batch by batch, the longest of a window first.

    Raises:
        ValueError: If ``batch_size`` is below 1, or ``label_batch`` gives another number of results.
    """
    if batch_size < 1:
        raise ValueError(
            f"batch_size must be at least 1, got {batch_size}. Use 1 to label one report at a time."
        )
    numbered = enumerate(reports)
    while window := list(islice(numbered, batch_size * BATCHES_PER_WINDOW)):
        # The longest first: what does not fit in memory fails at the start of a run.
        window.sort(key=lambda item: -len(item[1]))
        for start in range(0, len(window), batch_size):
            batch = window[start : start + batch_size]
            labels = _label_or_split([text for _, text in batch], label_batch, keys)
            yield from zip((position for position, _ in batch), labels, strict=True)


def _label_or_split(
    texts: list[str], label_batch: Callable[[list[str]], Sequence[ReportLabels]], keys: Sequence[str]
) -> list[ReportLabels]:
    try:
        labels = list(label_batch(texts))
    except StopLabeling:
        raise
    except Exception as error:
        if len(texts) > 1:
            return [labels for text in texts for labels in _label_or_split([text], label_batch, keys)]
        # The type only: the message of a foreign exception may quote the report.
        return [ReportLabels.failed(keys, f"exception:{type(error).__name__}")]
    if len(labels) != len(texts):
        raise ValueError(
            f"label_batch must return one result per report, got {len(labels)} for {len(texts)}. "
            "Fix the backend."
        )
    return labels
