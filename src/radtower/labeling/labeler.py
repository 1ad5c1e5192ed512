"""Reports -> label rows through any backend: each unique report once, and one failure never stops the run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from radtower.labeling.findings import FindingsSet, Status
from radtower.labeling.label_table import LabelRow
from radtower.processing.report_text import normalize_report, report_sha256

EMPTY_REPORT = "empty_report"


@dataclass(frozen=True, kw_only=True)
class ReportLabels:
    """What a backend says about one report; the dictionaries are keyed by finding, all findings in order.

    Either every status is set, or every status is None and ``error`` is a short reason: a code, never text
    of the report. ``score`` is P(present), None where none was measured.
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
        cls, keys: Sequence[str], error: str, *, tokens_in: int | None = None, tokens_out: int | None = None
    ) -> "ReportLabels":
        """Return the labels of a report that could not be labeled."""
        return cls(
            status=dict.fromkeys(keys),
            score=dict.fromkeys(keys),
            evidence=dict.fromkeys(keys),
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            error=error,
        )


class LabelerBackend(Protocol):
    """Anything that labels a batch of reports: an endpoint, a local LLM, a fine-tuned encoder.

    ``name`` is the kind of backend (column ``labeler``). ``prompt_version`` is None where there is no prompt.
    ``label`` returns one result per report, in order; it may raise, which costs the batch a second try one
    report at a time.
    """

    @property
    def name(self) -> str: ...
    @property
    def model_id(self) -> str: ...
    @property
    def prompt_version(self) -> str | None: ...
    def label(self, reports: list[str]) -> list[ReportLabels]: ...


def label_reports(
    reports: Iterable[tuple[str, str]],
    backend: LabelerBackend,
    findings: FindingsSet,
    *,
    batch_size: int = 32,
    on_progress: Callable[[int], None] | None = None,
) -> list[LabelRow]:
    """Label each unique report once.

    Reports are normalized first; those with the same normalized text share one row, under the id that came
    first. ``sha256_by_report_id`` leads from every id to its row.

    Args:
        reports: Pairs of report id and text.
        backend: Labels a batch; an exception in it costs only the reports that raise it alone as well.
        findings: The list the backend answers for.
        batch_size: Reports per call of the backend.
        on_progress: Called after each batch with the number of unique reports done so far.

    Returns:
        One row per unique report, in order of first appearance; ``error`` says why a report failed.

    Raises:
        ValueError: If ``batch_size`` is below 1, an id comes twice, or the backend breaks its contract.
    """
    if batch_size < 1:
        raise ValueError(
            f"batch_size must be at least 1, got {batch_size}. Use 1 to label one report at a time."
        )
    rows: list[LabelRow] = []
    unique = _unique_reports(reports)
    while batch := list(islice(unique, batch_size)):
        texts = [text for _, _, text in batch if text]
        labels = iter(_label_batch(texts, backend, findings))
        for report_id, sha256, text in batch:
            result = next(labels) if text else ReportLabels.failed(findings.keys, EMPTY_REPORT)
            rows.append(_row(report_id, sha256, result, backend, findings))
        if on_progress is not None:
            on_progress(len(rows))
    return rows


def sha256_by_report_id(reports: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Map every report id, duplicates included, to the hash of its normalized text: the key of its row."""
    return {report_id: report_sha256(text) for report_id, text in reports}


def _unique_reports(reports: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    seen_ids: set[str] = set()
    seen_hashes: set[str] = set()
    for position, (report_id, text) in enumerate(reports):
        if report_id in seen_ids:
            raise ValueError(
                f"report ids must be unique, got one a second time at position {position}. "
                "Give each report its own id."
            )
        seen_ids.add(report_id)
        sha256 = report_sha256(text)
        if sha256 not in seen_hashes:
            seen_hashes.add(sha256)
            yield report_id, sha256, normalize_report(text)


def _label_batch(texts: list[str], backend: LabelerBackend, findings: FindingsSet) -> list[ReportLabels]:
    if not texts:
        return []
    try:
        labels = backend.label(texts)
    except Exception as error:
        if len(texts) > 1:
            return [labels for text in texts for labels in _label_batch([text], backend, findings)]
        # The type only: the message of a foreign exception may quote the report.
        return [ReportLabels.failed(findings.keys, f"exception:{type(error).__name__}")]
    if len(labels) != len(texts):
        raise ValueError(
            f"backend must return one result per report, got {len(labels)} for {len(texts)}. "
            f"Fix {backend.name!r}."
        )
    for result in labels:
        if list(result.status) != list(findings.keys):
            raise ValueError(
                f"backend must answer for {list(findings.keys)} in this order, got {list(result.status)}. "
                f"Give {backend.name!r} the same findings set."
            )
    return labels


def _row(
    report_id: str, sha256: str, labels: ReportLabels, backend: LabelerBackend, findings: FindingsSet
) -> LabelRow:
    return LabelRow(
        report_id=report_id,
        report_sha256=sha256,
        status=labels.status,
        score=labels.score,
        evidence=labels.evidence,
        labeler=backend.name,
        model_id=backend.model_id,
        prompt_version=backend.prompt_version,
        findings_set=findings.name,
        tokens_in=labels.tokens_in,
        tokens_out=labels.tokens_out,
        cost_usd=labels.cost_usd,
        error=labels.error,
        num_dropped_evidence=labels.num_dropped_evidence,
    )
