"""Reports -> label table through any backend: each unique report once, and no answer is lost."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Protocol, runtime_checkable

from radtower.labeling.answers.batch_memory import BatchMemory
from radtower.labeling.answers.generation import Generation
from radtower.labeling.answers.labeling_summary import LabelingPlan, LabelingSummary
from radtower.labeling.answers.ledger import Ledger, ReportCounts, is_empty_report, open_ledger
from radtower.labeling.answers.ledger_parts import split_ledger
from radtower.labeling.findings import FindingsSet
from radtower.labeling.label_table import LabelRow, stream_labels
from radtower.labeling.report_labels import ReportLabels, StopLabeling
from radtower.processing.report_text import normalize_report, normalized_sha256, report_sha256

EMPTY_REPORT = "empty_report"
NOT_ASKED = "not_asked"
_PAGE = 1000  # reports that are looked up in the ledger at once
_NUM_LISTED = 20  # failures that a summary names


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


@runtime_checkable
class StoringBackend(LabelerBackend, Protocol):
    """A backend that works on many reports at once, and has each answer stored before it asks on."""

    def label_into(self, reports: Iterable[str], store: Callable[[int, ReportLabels], None]) -> None:
        """Do what ``label`` does, and call ``store`` with position and labels in place of yielding them."""
        ...


def label_reports(
    reports: Iterable[tuple[str, str]],
    backend: LabelerBackend,
    findings: FindingsSet,
    output: str | Path,
    *,
    should_retry_failed: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> LabelingSummary:
    """Label each unique report once, and write the label table.

    Reports are normalized first; those with the same normalized text share one row, under the id that came
    first. Answers are stored as they come: a run that was killed goes on where it was. Memory does not
    grow with the number of reports.

    Args:
        reports: Pairs of report id and text; read twice, so a list or a ``ReportStream`` and no generator.
        backend: Labels what is not empty.
        findings: The list the backend answers for.
        output: Label table (parquet). Beside it, ``<output>.ledger`` keeps every answer.
        should_retry_failed: Ask again where the model's reply could not be used (``reply:``), too. What was
            not answered at all is always asked again.
        on_progress: Called with the number of unique reports that are done, those of earlier runs included.

    Returns:
        Counts. A backend that stopped early is no exception here if any report has labels.

    Raises:
        BlockingIOError: If another process writes the same table.
        StopLabeling: If the backend stopped before any report had labels; nothing is written.
        TypeError: If ``reports`` can be read only once.
        ValueError: If an id comes twice, there are no reports, none can be labeled, or the backend breaks
            its contract.
    """
    with open_ledger(output) as ledger:
        counts = ledger.register(reports)
        run = LabelingRun(ledger, counts, reports, backend, findings, should_retry_failed=should_retry_failed)
        run.label(on_progress)
        return run.write(output)


class LabelingRun:
    """One run over registered reports; ``label_reports`` is its use in order.

    Args:
        ledger: Open; ``reports`` are registered.
        counts: What ``ledger.register`` returned.
        reports: As in ``label_reports``.
        backend: As in ``label_reports``.
        findings: As in ``label_reports``.
        should_retry_failed: As in ``label_reports``.

    Raises:
        TypeError: If ``reports`` can be read only once.
    """

    def __init__(
        self,
        ledger: Ledger,
        counts: ReportCounts,
        reports: Iterable[tuple[str, str]],
        backend: LabelerBackend,
        findings: FindingsSet,
        *,
        should_retry_failed: bool = False,
    ) -> None:
        if isinstance(reports, Iterator):
            raise TypeError(
                f"reports must be readable twice, got a {type(reports).__name__}. "
                "Pass a list or a ReportStream."
            )
        self.reports = reports
        self.backend = backend
        self.findings = findings
        self._ledger = ledger
        self._keys = findings.keys
        self._retries_failed = should_retry_failed
        self.generation = _generation_of(backend, findings)
        self._is_begun = False
        self.plan = self._make_plan(counts)

    def split(self, output: str | Path, num_parts: int) -> None:
        """Make parts of the ledger of ``output``, for tasks that ask at once; see ``split_ledger``."""
        self._begin()
        split_ledger(
            self._ledger, output, self.generation, num_parts, should_retry_failed=self._retries_failed
        )

    def pending(self) -> Iterator[tuple[str, str]]:
        """Yield hash and normalized text of the reports without an answer, in order.

        Raises:
            ValueError: If the reports are no longer those that were registered.
        """
        stream = enumerate(self.reports)
        last = -1
        while page := self._ledger.to_ask(
            self.plan.generation, after=last, limit=_PAGE, should_retry_failed=self._retries_failed
        ):
            for last, sha256 in page:
                yield sha256, _text_at(stream, last, sha256)

    def batches(self) -> BatchMemory:
        """Return which reports are in batch files of this generation."""
        self._begin()
        return self._ledger.batches(self.plan.generation)

    def record(self, sha256: str, labels: ReportLabels, *, source: str | None = None) -> None:
        """Store the answer for a report of this run; what comes from the same source again is left out.

        Raises:
            KeyError: If no report of this run has this hash.
            ValueError: If the labels are of other findings.
        """
        if not self._ledger.is_registered(sha256):
            raise KeyError(
                f"sha256 must be of a report of this run, got {sha256[:12]}. Label the table it came from."
            )
        self._begin()
        self._record(sha256, labels, source)

    def label(self, on_progress: Callable[[int], None] | None = None) -> None:
        """Ask the backend for everything that has no answer.

        Raises:
            ValueError: If the backend breaks its contract; what was answered before is kept.
        """
        self._begin()
        in_flight: dict[int, str] = {}
        num_taken = 0

        def feed() -> Iterator[str]:
            nonlocal num_taken
            for position, (sha256, text) in enumerate(self.pending()):
                in_flight[position] = sha256
                num_taken = position + 1
                yield text

        num_done = self.plan.num_unique - self.plan.num_to_ask

        def store(position: int, labels: ReportLabels) -> None:
            nonlocal num_done
            self._record(self._take(in_flight, position), labels)
            num_done += 1
            if on_progress is not None:
                on_progress(num_done)

        try:
            if isinstance(self.backend, StoringBackend):
                self.backend.label_into(feed(), store)
            else:
                with _closed_at_the_end(self.backend.label(feed())) as answers:
                    for answer in answers:
                        store(*answer)
        except StopLabeling as stop:
            self._ledger.note_stop(stop.reason, str(stop))
            return
        if in_flight or num_taken < self.plan.num_to_ask:
            num_missing = self.plan.num_to_ask - num_taken + len(in_flight)
            raise ValueError(
                f"backend must answer every report, got none for {num_missing} of {self.plan.num_to_ask}. "
                f"Fix {self.backend.name!r}."
            )

    def write(self, output: str | Path) -> LabelingSummary:
        """Write the label table; what has no answer is in it with its reason.

        Raises:
            StopLabeling: If the backend stopped before any report had labels.
            ValueError: If no report has labels.
        """
        failures: Counter[str] = Counter()
        listed: dict[str, str] = {}
        reason, stopped = self._ledger.stop() or (NOT_ASKED, None)
        rows = self._rows(reason, failures, listed)
        totals = self._ledger.totals(self.plan.generation)
        if not totals.num_labeled:
            if stopped is not None:
                raise StopLabeling(reason, stopped)
            _refuse_to_write(rows, failures)
        stream_labels(rows, output, self.findings.keys, self.generation.parts)
        return LabelingSummary(
            plan=self.plan,
            num_labeled=totals.num_labeled,
            num_failed=dict(failures.most_common()),
            first_failures=listed,
            tokens_in=totals.tokens_in,
            tokens_out=totals.tokens_out,
            cost_usd=totals.cost_usd,
            num_dropped_evidence=totals.num_dropped_evidence,
            stopped=stopped,
        )

    def _make_plan(self, counts: ReportCounts) -> LabelingPlan:
        last, code = self._ledger.last_generation(), self.generation.hash
        return LabelingPlan(
            generation=code,
            changes=() if last is None else self.generation.changes_since(last),
            num_reports=counts.num_reports,
            num_unique=counts.num_unique,
            num_to_ask=self._ledger.num_to_ask(code, should_retry_failed=self._retries_failed),
            spent_usd=self._ledger.spent_usd(code),
            num_in_batches=self._ledger.num_in_batches(code, should_retry_failed=self._retries_failed),
        )

    def _begin(self) -> None:
        if not self._is_begun:
            self._ledger.use(self.generation)
            self._is_begun = True

    def _record(self, sha256: str, labels: ReportLabels, source: str | None = None) -> None:
        for answers in (labels.status, labels.score, labels.evidence):
            if tuple(answers) != self._keys:
                raise ValueError(
                    f"backend must answer for {list(self.findings.keys)} in this order, got {list(answers)}. "
                    f"Give {self.backend.name!r} the same findings set."
                )
        self._ledger.record(self.plan.generation, sha256, labels, source=source)

    def _take(self, in_flight: dict[int, str], position: int) -> str:
        if position not in in_flight:
            raise ValueError(
                f"backend must answer each report once, got position {position}, which it does not have. "
                f"Fix {self.backend.name!r}."
            )
        return in_flight.pop(position)

    def _rows(self, not_asked: str, failures: Counter[str], listed: dict[str, str]) -> Iterator[LabelRow]:
        """The rows of the table; counts the failures, and lists the first of them, on the way."""
        for report_id, sha256, answer in self._ledger.rows(self.plan.generation, self.findings.keys):
            reason = EMPTY_REPORT if is_empty_report(sha256) else not_asked
            labels = answer or ReportLabels.failed(self.findings.keys, reason)
            if labels.error is not None:
                failures[labels.error] += 1
                if len(listed) < _NUM_LISTED:
                    listed[report_id] = labels.error
            yield _row(report_id, sha256, labels, self.backend, self.findings)


def sha256_by_report_id(reports: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Map every report id, duplicates included, to the hash of its normalized text: the key of its row."""
    return {report_id: report_sha256(text) for report_id, text in reports}


def _refuse_to_write(rows: Iterator[LabelRow], failures: Counter[str]) -> NoReturn:
    num_rows = sum(1 for _ in rows)
    reasons = ", ".join(f"{reason} {count}" for reason, count in failures.most_common())
    raise ValueError(
        f"at least one report must be labeled, got none of {num_rows}: {reasons}. Nothing was written."
    )


@contextmanager
def _closed_at_the_end(
    answers: Iterator[tuple[int, ReportLabels]],
) -> Iterator[Iterator[tuple[int, ReportLabels]]]:
    """A backend that works in the background stops when its answers are not wanted any more."""
    try:
        yield answers
    finally:
        if isinstance(answers, Generator):
            answers.close()


def _generation_of(backend: LabelerBackend, findings: FindingsSet) -> Generation:
    settings = {f"settings.{name}": value for name, value in backend.settings.items()}
    parts = {
        "labeler": backend.name,
        "model_id": backend.model_id,
        "prompt_version": backend.prompt_version,
        "findings": findings.identity,
    }
    return Generation(parts | settings)


def _text_at(stream: Iterator[tuple[int, tuple[str, str]]], position: int, sha256: str) -> str:
    """The normalized text at ``position``, to which ``stream`` is moved."""
    for row, (_, text) in stream:
        if row == position:
            normalized = normalize_report(text)
            if normalized_sha256(normalized) == sha256:
                return normalized
            break
    raise ValueError(
        f"reports must stay the same during a run, got another report or none at position {position}. "
        "Run again when the table is complete."
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
