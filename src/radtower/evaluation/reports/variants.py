"""Numbers of one question that go by several names: baselines, paired differences, ways of one script.

``results.json`` keeps them apart by protocol and by the end of the metric, so that nobody takes a baseline
for a model. In a table they are rows below the model.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from radtower.evaluation.results import MetricResult, Provenance

SCRIPT = "CT-CLIP script"  # its ways: as printed, and with one error after the other repaired
DIFFERENCE_NOTE = "the interval of the paired difference excludes 0"
ORACLE = "label oracle"
_DIFFERENCE, _BASELINE, _ORACLE = "_difference", "_baseline", "_oracle_baseline"
_MINUS = re.compile(r"(?:(.*); )?model minus (.+)", re.DOTALL)


@dataclass(frozen=True)
class Variant:
    """Whose a number is.

    Args:
        model: Name of the model.
        baseline: What it is compared with; empty for the model itself.
        is_difference: Whether the number is the model minus the baseline.
        way: Of a protocol that is done in several ways; empty where there is one.
    """

    model: str
    baseline: str = ""
    is_difference: bool = False
    way: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it is a number of the model itself, by the protocol itself."""
        return not (self.baseline or self.way)


def variant_of(model: str, item: MetricResult) -> tuple[Variant, MetricResult]:
    """Say whose a number is; it comes back under the metric and protocol that it shares with the model's."""
    protocol, way = item.protocol, ""
    if protocol is not None and protocol.startswith(f"{SCRIPT}, "):
        protocol, way = SCRIPT, protocol.removeprefix(f"{SCRIPT}, ")
    metric, baseline, is_difference = item.metric, "", False
    minus = _MINUS.fullmatch(protocol or "")
    if metric.endswith(_DIFFERENCE) and minus is not None:
        metric, is_difference = metric.removesuffix(_DIFFERENCE), True
        protocol, baseline = minus[1], minus[2]
    elif metric.endswith(_ORACLE):
        metric, baseline = metric.removesuffix(_ORACLE), ORACLE
    elif metric.endswith(_BASELINE) and protocol is not None and "; " in protocol:
        metric = metric.removesuffix(_BASELINE)
        protocol, _, baseline = protocol.rpartition("; ")
    shared = item.model_copy(update={"metric": metric, "protocol": protocol})
    return Variant(model, baseline, is_difference, way), shared


def section_of(provenance: Provenance) -> tuple[str, str, str | None]:
    """Return what a section is of: data set, labels, protocol. Class sets are tables of one section."""
    return provenance.dataset, provenance.label_source, provenance.protocol


def variant_names(variants: Iterable[Variant]) -> dict[Variant, str]:
    """Name the rows of a table, in their order: models first, then each baseline with what is made of it."""
    found = list(dict.fromkeys(variants))
    ways = list(dict.fromkeys(variant.way for variant in found))
    models = list(dict.fromkeys(variant.model for variant in found))
    baselines = ["", *dict.fromkeys(variant.baseline for variant in found if variant.baseline)]

    def place(variant: Variant) -> tuple[int, int, bool, int]:
        baseline = baselines.index(variant.baseline)
        return ways.index(variant.way), baseline, variant.is_difference, models.index(variant.model)

    return {variant: _name(variant, models) for variant in sorted(found, key=place)}


def _name(variant: Variant, models: Sequence[str]) -> str:
    if variant.is_difference:
        name = f"{variant.model} minus {variant.baseline}"
    elif variant.baseline:
        name = variant.baseline + (f" ({variant.model})" if len(models) > 1 else "")
    else:
        name = variant.model
    return ", ".join(filter(None, [variant.way, name]))
