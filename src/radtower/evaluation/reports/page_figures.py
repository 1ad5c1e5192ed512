"""Which pictures a data set and protocol gets, and what their captions say; needs the extra ``plots``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from radtower.data.targets import MASKED_TARGET
from radtower.evaluation.calibration import NUM_BINS, Reliability, reliability
from radtower.evaluation.reports.html_parts import PageFigure
from radtower.evaluation.reports.pictures.curve_plots import MAX_PANELS, draw_recall, draw_roc
from radtower.evaluation.reports.pictures.curves import Curve, recall_curve, roc_curves, score_matrix
from radtower.evaluation.reports.pictures.drawing import png_bytes, svg_text
from radtower.evaluation.reports.pictures.interval_plots import draw_forest, draw_reliability
from radtower.evaluation.reports.runs import Run
from radtower.evaluation.reports.wording import finding_name, interval_method, where
from radtower.evaluation.results import MetricResult

LARGEST_K = 100
FOREST = ("auroc", "f1")
Where = tuple[str, str, str, str | None]
_WHERE_COLUMNS = ("dataset", "class_set", "label_source", "protocol")


@dataclass(frozen=True)
class Resampling:
    """How bands are made; the numbers themselves bring their intervals along."""

    num_resamples: int = 1000
    seed: int = 0


def section_figures(
    runs: Sequence[Run], place: Where, number: str, resampling: Resampling
) -> Iterator[PageFigure]:
    """Draw what can be drawn of a data set and protocol.

    Args:
        runs: One or several models.
        place: Data set, class set, label source and protocol.
        number: Of the section, and of the place in it behind the first; goes into file names.
        resampling: Of the bands.
    """
    on = f"{place[0]}; class set: {place[1]}; labels: {place[2]}" + (f"; {place[3]}" if place[3] else "")
    makers: tuple[Callable[..., _Drawn | None], ...] = (_forest, _roc, _reliability, _recall)
    for make in makers:
        drawn = make(runs, place, resampling)
        if drawn is not None:
            name = f"{drawn.kind}-{number}"
            png = png_bytes(drawn.figure)
            drawn.figure.set_layout_engine("none")  # it is laid out: twice the same takes twice as long
            svg = svg_text(drawn.figure, name)
            caption = f"{drawn.caption} Measured on {on}."
            yield PageFigure(name, drawn.title, caption, drawn.alt, svg, png, drawn.is_narrow)


@dataclass(frozen=True)
class _Drawn:
    kind: str
    title: str
    caption: str
    alt: str
    figure: Figure
    is_narrow: bool = False


def _forest(runs: Sequence[Run], place: Where, resampling: Resampling) -> _Drawn | None:
    items = {run.name: [item for item in run.results.metrics if where(item) == place] for run in runs}
    # Of F1 with several thresholds none is "the" F1.
    items = {name: _without_ambiguous(found) for name, found in items.items()}
    items = {name: found for name, found in items.items() if _has_findings(found)}
    if not items:
        return None
    shown = [
        item for found in items.values() for item in found if item.metric.removeprefix("macro_") in FOREST
    ]
    num_findings = len({item.finding for item in shown if item.finding is not None})
    values = [item for item in shown if item.metric == "auroc" and item.value is not None]
    alt = f"Intervals of {num_findings} findings"
    if values:
        best = max(values, key=lambda item: item.value or 0.0)
        least = min(values, key=lambda item: item.value or 0.0)
        alt += f"; AUROC from {_said(least)} to {_said(best)}"
    caption = f"{interval_method(shown)}. n stands in brackets: present / known."
    return _Drawn("forest", "Intervals per finding", caption, f"{alt}.", draw_forest(items, FOREST))


def _roc(runs: Sequence[Run], place: Where, resampling: Resampling) -> _Drawn | None:
    curves: dict[str, dict[str, Curve]] = {}
    means: dict[str, Curve] = {}
    sizes, missing = [], []
    for name, frame in _scores(runs, place):
        sample = score_matrix(frame)
        found, mean = roc_curves(sample, resampling.num_resamples, resampling.seed)
        if mean is None:
            continue
        curves[name], means[name] = found, mean
        missing += [finding_name(key) for key in sample.findings if key not in found]
        sizes.append(f"{len(sample.labels)} items of {mean.num_patients} patients")
    if not means:
        return None
    left_out = (
        f" Without a curve, as they have one class only: {', '.join(dict.fromkeys(missing))}."
        if missing
        else ""
    )
    num_findings = len({finding for one in curves.values() for finding in one})
    thin = f" With more than {MAX_PANELS} findings each is a thin line." if num_findings > MAX_PANELS else ""
    caption = (
        f"n = {'; '.join(dict.fromkeys(sizes))}. Band: 95% of {resampling.num_resamples} resamples of the "
        f"patients, at each rate by itself. The mean is that of the sensitivities at a rate.{thin}{left_out}"
    )
    alt = f"ROC curves of {num_findings} findings with bands; the areas stand in the table."
    return _Drawn("roc", "ROC curves", caption, alt, draw_roc(curves, means), is_narrow=num_findings == 1)


def _reliability(runs: Sequence[Run], place: Where, resampling: Resampling) -> _Drawn | None:
    curves: dict[str, Reliability] = {}
    for name, frame in _scores(runs, place):
        scores, labels = frame["score"].to_numpy(dtype=float), frame["label"].to_numpy(dtype=float)
        is_probability = ((scores >= 0) & (scores <= 1)).all()
        if is_probability and (labels != MASKED_TARGET).any():
            curves[name] = reliability(scores, labels)
    if not curves:
        return None
    sizes = dict.fromkeys(f"{int(curve.counts.sum())} scores" for curve in curves.values())
    caption = (
        f"n = {'; '.join(sizes)} with a known label, all findings together, in {NUM_BINS} bins of equal "
        "width. The scores are read as probabilities; on the dotted line they mean what they say. "
        "Point estimates, without intervals."
    )
    errors = ", ".join(f"{name} {curve.error:.3f}" for name, curve in curves.items())
    alt = f"Share present over the score; expected calibration error: {errors}."
    return _Drawn("reliability", "Reliability", caption, alt, draw_reliability(curves), is_narrow=True)


def _recall(runs: Sequence[Run], place: Where, resampling: Resampling) -> _Drawn | None:
    curves: dict[str, dict[str, Curve]] = {}
    sizes = []
    for run in runs:
        frame = _at(run.queries, place)
        for direction, group in frame[frame["metric"] == "rank"].groupby("direction", sort=False):
            ranks = group["value"].to_numpy(dtype=float)
            largest = min(LARGEST_K, max(1, len(ranks) - 1))
            curve = recall_curve(
                ranks, group["patient_id"].to_numpy(), largest, resampling.num_resamples, resampling.seed
            )
            curves.setdefault(str(direction), {})[run.name] = curve
            sizes.append(f"{len(ranks)} queries of {curve.num_patients} patients")
    if not curves:
        return None
    caption = (
        f"n = {'; '.join(dict.fromkeys(sizes))} in each direction. Band: 95% of "
        f"{resampling.num_resamples} resamples of the patients of the queries, at each k by itself; the "
        "gallery stays as it is."
    )
    alt = "; ".join(
        f"{direction.replace('_', ' ')}, {name}: recall@1 {curve.y[0]:.2f}, "
        f"recall@{curve.x[-1]} {curve.y[-1]:.2f}"
        for direction, lines in curves.items()
        for name, curve in lines.items()
    )
    chance = {direction: _chance(runs, place, direction) for direction in curves}
    figure = draw_recall(curves, chance)
    return _Drawn("recall", "Recall at k", caption, f"{alt}.", figure, is_narrow=len(curves) == 1)


def _scores(runs: Sequence[Run], place: Where) -> Iterator[tuple[str, pd.DataFrame]]:
    for run in runs:
        frame = _at(run.scores, place)
        if len(frame):
            yield run.name, frame


def _at(frame: pd.DataFrame | None, place: Where) -> pd.DataFrame:
    """Rows of a data set and protocol."""
    if frame is None:
        return pd.DataFrame(columns=[*_WHERE_COLUMNS, "metric", "direction"])
    is_here = np.ones(len(frame), dtype=bool)
    for column, value in zip(_WHERE_COLUMNS, place, strict=True):
        # A protocol that is not there is null in the file.
        is_here &= (frame[column].isna() if value is None else frame[column] == value).to_numpy()
    return frame[is_here]


def _chance(runs: Sequence[Run], place: Where, direction: str) -> list[tuple[int, float]]:
    """Chance of recall@k, where all models have the same."""
    levels: dict[int, set[float]] = {}
    for run in runs:
        for item in run.results.metrics:
            base, _, k = item.metric.partition("_at_")
            if where(item) == place and item.direction == direction and base == "recall" and k.isdigit():
                levels.setdefault(int(k), set()).update(() if item.chance is None else (item.chance,))
    return [(k, next(iter(found))) for k, found in sorted(levels.items()) if len(found) == 1]


def _without_ambiguous(items: Sequence[MetricResult]) -> list[MetricResult]:
    seen: dict[tuple[str, str | None], int] = {}
    for item in items:
        seen[item.metric, item.finding] = seen.get((item.metric, item.finding), 0) + 1
    return [item for item in items if seen[item.metric, item.finding] == 1]


def _has_findings(items: Sequence[MetricResult]) -> bool:
    return any(item.metric in FOREST and item.finding is not None for item in items)


def _said(item: MetricResult) -> str:
    return f"{item.value:.2f} ({finding_name(item.finding or '')})"
