"""A label table against gold: everything that is said about it, in one pass."""

from dataclasses import dataclass
from datetime import UTC, datetime

from radtower.data.gold_labels import LabelPairs
from radtower.evaluation.agreement import Agreement, Failures, compare_labels
from radtower.evaluation.labels.disagreements import Disagreement, most_confident_disagreements
from radtower.evaluation.results import Provenance, Results


@dataclass(frozen=True)
class LabelEvaluation:
    """``results`` is for ``results.json``; ``agreement`` also has what a picture needs."""

    results: Results
    agreement: Agreement
    disagreements: list[Disagreement]


@dataclass(frozen=True, kw_only=True)
class LabelEvaluationOptions:
    """How to measure: see ``compare_labels``; ``num_disagreements`` is the length of the list, at most.

    ``generation`` is the ``generation_hash`` of the label table; results carry it as ``model_revision``.
    """

    failures: Failures = "left_out"
    num_resamples: int = 2000
    num_disagreements: int = 20
    is_phantom: bool = False
    generation: str | None = None


def evaluate_labels(
    pairs: LabelPairs, provenance: Provenance, model_id: str, options: LabelEvaluationOptions
) -> LabelEvaluation:
    """Compare silver and gold labels.

    Args:
        pairs: The reports that both sides have.
        provenance: Data set, class set and source of the gold labels.
        model_id: Who labeled.
        options: How to measure.
    """
    disagreements = most_confident_disagreements(
        pairs.silver, pairs.gold, pairs.scores, options.num_disagreements
    )
    agreement = compare_labels(
        pairs.silver,
        pairs.gold,
        provenance,
        scores=pairs.scores.to_numpy(),
        patient_ids=pairs.patient_ids,
        num_resamples=options.num_resamples,
        failures=options.failures,
    )
    not_measured = [f"{key} ({why})" for key, why in pairs.left_out.items()]
    if pairs.missing:
        not_measured.append(f"gold reports that the label table does not have: {len(pairs.missing)}")
    results = Results(
        model_id=model_id,
        model_revision=options.generation,
        created=datetime.now(UTC),
        phantom=options.is_phantom,
        metrics=agreement.metrics,
        not_measured=tuple(not_measured),
        confusion={
            key: {str(state): {str(c): int(n) for c, n in row.items()} for state, row in table.iterrows()}
            for key, table in agreement.confusion.items()
        },
    )
    return LabelEvaluation(results, agreement, disagreements)
