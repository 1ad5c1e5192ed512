"""``comparison.json``: a model against another on the same items, number by number."""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from radtower.evaluation.results import Provenance, Results

SCHEMA_VERSION = 1


class ComparedModel(BaseModel):
    """A model of a comparison, and when it was evaluated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_id: str
    model_revision: str | None
    evaluated: AwareDatetime
    phantom: bool

    @classmethod
    def of(cls, results: Results) -> "ComparedModel":
        """Return the model of a ``results.json``."""
        return cls(
            model_id=results.model_id,
            model_revision=results.model_revision,
            evaluated=results.created,
            phantom=results.phantom,
        )


class ComparedValue(BaseModel):
    """One number of one model, as its ``results.json`` has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    n_positive: int | None


class MetricDifference(Provenance):
    """One metric of two models.

    ``difference`` is second minus first, with the interval of a paired patient bootstrap; null where ``note``
    says why. ``delong_p`` is that of DeLong's test, for an AUROC; ``delong_p_holm`` is corrected for the
    ``num_tests`` findings that were tested with the same data, labels and protocol.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: str
    finding: str | None
    direction: str | None
    first: ComparedValue
    second: ComparedValue
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    ci_level: float = 0.95
    ci_method: str | None = None
    delong_p: float | None = None
    delong_p_holm: float | None = None
    num_tests: int | None = None
    delong_method: str | None = None
    note: str | None = None


class Comparison(BaseModel):
    """Two models.

    ``remarks`` are what a reader has to know before the numbers: phantom data, metrics that only one has,
    other sizes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: ComparedModel
    second: ComparedModel
    remarks: tuple[str, ...]
    differences: tuple[MetricDifference, ...]


class Comparisons(BaseModel):
    """The first model against every other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    use: Literal["Research use only, not for diagnosis."] = "Research use only, not for diagnosis."
    comparisons: tuple[Comparison, ...]
