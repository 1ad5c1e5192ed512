"""What a labeling run is going to do, and what it did."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LabelingPlan:
    """What a run will do.

    Args:
        generation: Hash of labeler, model, prompt, settings and findings; only its answers count.
        changes: What differs from the generation used last; empty where nothing does, or there is none.
        num_reports: Rows of the table of reports.
        num_unique: Different texts among them.
        num_to_ask: Those that the backend will get; the others are answered already, or empty.
        spent_usd: What this generation cost so far.
        num_in_batches: Those to ask that are in batch files whose results were not read.
    """

    generation: str
    changes: tuple[str, ...]
    num_reports: int
    num_unique: int
    num_to_ask: int
    spent_usd: float
    num_in_batches: int = 0


@dataclass(frozen=True, kw_only=True)
class LabelingSummary:
    """What is in the label table.

    Args:
        plan: What was there before.
        num_labeled: Unique reports with labels.
        num_failed: Unique reports without labels, by reason, the most frequent first.
        first_failures: Report id and reason of the first of them.
        tokens_in: Sum over the table, earlier runs of the generation included; None where nobody counted.
        tokens_out: The same.
        cost_usd: The same.
        num_dropped_evidence: Quotes that were not in their report.
        stopped: Why the backend stopped early, for the user; None if it did not.
        notes: Sentences of the backend about this run, those of all tasks together.
    """

    plan: LabelingPlan
    num_labeled: int
    num_failed: dict[str, int]
    first_failures: dict[str, str]
    tokens_in: int | None
    tokens_out: int | None
    cost_usd: float | None
    num_dropped_evidence: int
    stopped: str | None
    notes: tuple[str, ...] = ()
