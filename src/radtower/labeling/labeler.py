"""Reports -> label rows through any backend: each unique report once, and one failure never stops the run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from radtower.labeling.findings import FindingsSet
from radtower.labeling.label_table import LabelRow
from radtower.labeling.report_labels import ReportLabels
from radtower.processing.report_text import normalize_report, report_sha256

EMPTY_REPORT = "empty_report"


class LabelerBackend(Protocol):
    """Anything that labels reports: an endpoint, a local LLM, a fine-tuned encoder.

    ``name`` is the kind of backend (column ``labeler``). ``prompt_version`` is None where there is no prompt.
    """

    @property
    def name(self) -> str: ...
    @property
    def model_id(self) -> str: ...
    @property
    def prompt_version(self) -> str | None: ...

    @property
    def settings(self) -> Mapping[str, str | int | float | bool | None]:
        """Everything beside the findings set that answers depend on, such as a hash of prompt or weights.

        A change starts a new generation. Addresses, concurrency, batch sizes and prices are no part of it.
        """
        ...

    def label(self, reports: Iterable[str]) -> Iterator[tuple[int, ReportLabels]]:
        """Yield position in ``reports`` and labels: any order, each as soon as it is known and exactly once.

        Normalized texts are taken only as fast as there is room for them. What one report does wrong is
        ``ReportLabels.failed``; ``StopLabeling`` is raised when going on is pointless.
        """
        ...


def label_reports(
    reports: Iterable[tuple[str, str]],
    backend: LabelerBackend,
    findings: FindingsSet,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> list[LabelRow]:
    """Label each unique report once.

    Reports are normalized first; those with the same normalized text share one row, under the id that came
    first. ``sha256_by_report_id`` leads from every id to its row.

    Args:
        reports: Pairs of report id and text.
        backend: Labels what is not empty.
        findings: The list the backend answers for.
        on_progress: Called with the number of reports that the backend has answered so far.

    Returns:
        One row per unique report, in order of first appearance; ``error`` says why a report failed.

    Raises:
        ValueError: If an id comes twice, or the backend breaks its contract.
    """
    unique = list(_unique_reports(reports))
    asked = [sha256 for _, sha256, text in unique if text]
    answers: dict[str, ReportLabels] = {}
    for position, labels in backend.label(text for _, _, text in unique if text):
        _check(labels, backend, findings)
        answers[asked[position]] = labels
        if on_progress is not None:
            on_progress(len(answers))
    if len(answers) != len(asked):
        raise ValueError(
            f"backend must answer every report once, got {len(answers)} answers for {len(asked)}. "
            f"Fix {backend.name!r}."
        )
    empty = ReportLabels.failed(findings.keys, EMPTY_REPORT)
    return [_row(report_id, sha, answers.get(sha, empty), backend, findings) for report_id, sha, _ in unique]


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


def _check(labels: ReportLabels, backend: LabelerBackend, findings: FindingsSet) -> None:
    if list(labels.status) != list(findings.keys):
        raise ValueError(
            f"backend must answer for {list(findings.keys)} in this order, got {list(labels.status)}. "
            f"Give {backend.name!r} the same findings set."
        )


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
