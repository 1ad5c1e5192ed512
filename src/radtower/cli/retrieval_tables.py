"""How the results of ``radtower evaluate retrieval`` look on a terminal."""

from collections.abc import Iterable
from pathlib import Path

import typer

from radtower.cli.output import NOT_FOR_DIAGNOSIS, print_json, print_table, value_with_interval
from radtower.cli.read_outs import is_read_out, print_read_outs
from radtower.evaluation.results import MetricResult, Results
from radtower.evaluation.retrieval.images.image_retrieval import LEGACY_MAP, ORACLE
from radtower.evaluation.retrieval.images.legacy_ct_clip import AS_PRINTED, VARIANTS


def print_retrieval(results: Results, output: Path, *, as_json: bool) -> None:
    """Print what was measured and where it is; what could not be measured goes to stderr."""
    if as_json:
        print_json(results.model_dump(mode="json"))
    else:
        _print_tables(results)
        print(f"Written: {output}")
    for reason in results.not_measured:
        typer.echo(f"not measured: {reason}", err=True)


def _print_tables(results: Results) -> None:
    """One table per protocol; the arithmetic of CT-CLIP, its repairs and its bounds side by side."""
    print(f"{results.model_id} on {results.metrics[0].dataset}")
    legacy = [item for item in results.metrics if item.protocol in VARIANTS]
    groups: dict[str, list[MetricResult]] = {}
    read_outs = [item for item in results.metrics if is_read_out(item)]
    for item in results.metrics:
        if item.protocol not in VARIANTS and not is_read_out(item):
            groups.setdefault(item.protocol or "", []).append(item)
    for protocol, items in groups.items():
        if items[0].direction == "image_to_image":
            _print_images(protocol, items)
        else:
            _print_pairs(protocol, items)
    if legacy:
        _print_legacy(legacy)
    if read_outs:
        print_read_outs(read_outs)
    print(
        "95 % intervals over patients. Chance: a random order. What ties with the right one stands before it."
    )
    if results.phantom:
        print("These are phantom results: they show that the software works.")
    print(NOT_FOR_DIAGNOSIS)


def _print_pairs(protocol: str, items: list[MetricResult]) -> None:
    """Both directions; chance is that of each, because copies of a report stand together."""
    by_metric = _by_metric(items)
    directions = [str(item.direction).replace("_", " ") for item in next(iter(by_metric.values()))]
    columns = ("", *(name for direction in directions for name in (direction, "chance")))
    rows = [
        (name, *(cell for item in found for cell in (value_with_interval(item), _chance(item))))
        for name, found in by_metric.items()
    ]
    print_table(f"{protocol}, {items[0].n} queries", columns, rows)


def _print_images(protocol: str, items: list[MetricResult]) -> None:
    rows = [
        (name, value_with_interval(item), _chance(item), str(item.n))
        for name, (item,) in _by_metric(items).items()
    ]
    print_table(f"image to image, {protocol}", ("", "value", "chance", "n"), rows)


def _print_legacy(items: list[MetricResult]) -> None:
    """Rows are the model, random vectors and the label oracle at each k; columns are the repairs."""
    found = {(item.protocol, item.metric): item for item in items}
    prefix = LEGACY_MAP.format("")
    ks = [m.metric.removeprefix(prefix) for m in items if m.protocol == AS_PRINTED and ORACLE not in m.metric]
    rows = []
    for k in ks:
        names = [(LEGACY_MAP if v == AS_PRINTED else "mean_jaccard_at_{}").format(k) for v in VARIANTS]
        mine = [found[variant, name] for variant, name in zip(VARIANTS, names, strict=True)]
        best = [found[variant, name + ORACLE] for variant, name in zip(VARIANTS, names, strict=True)]
        rows += [
            (f"@{k} random vectors", *map(_chance_in_full, mine)),
            (f"@{k} this model", *map(_percent, mine)),
            (f"@{k} label oracle", *map(_percent, best)),
        ]
    titles = [variant.rsplit(", ", 1)[1] for variant in VARIANTS]
    print_table(f"image to image, MAP@k of CT-CLIP's script in %, {items[0].n} queries", ("", *titles), rows)


def _by_metric(items: Iterable[MetricResult]) -> dict[str, list[MetricResult]]:
    groups: dict[str, list[MetricResult]] = {}
    for item in items:
        groups.setdefault(item.metric.replace("_at_", "@").replace("_", " "), []).append(item)
    return groups


def _chance(item: MetricResult) -> str:
    return "-" if item.chance is None else f"{item.chance:.2f}"


def _chance_in_full(item: MetricResult) -> str:
    return "-" if item.chance is None else f"{100 * item.chance:.1f}"


def _percent(item: MetricResult) -> str:
    if item.value is None:
        return "undefined"
    return f"{100 * item.value:.1f} ({100 * (item.ci_low or 0):.1f}-{100 * (item.ci_high or 0):.1f})"
