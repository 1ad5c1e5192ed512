import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from radtower.evaluation.labels.calibration import reliability
from radtower.evaluation.labels.label_plots import plot_forest, plot_reliability
from radtower.evaluation.results import MetricResult

WHAT = {"dataset": "d", "class_set": "c", "label_source": "manual", "ci_method": "bootstrap", "n": 9}


def result(metric, finding, value, width=0.1):
    if value is None:
        return MetricResult(
            metric=metric, finding=finding, value=None, ci_low=None, ci_high=None, note="x", **WHAT
        )
    low, high = value - width, value + width
    return MetricResult(
        metric=metric, finding=finding, value=value, ci_low=low, ci_high=high, n_positive=3, **WHAT
    )


def metrics(width=0.1, f1=0.7):
    return [
        result("auroc", "pleural_effusion", 0.8, width),
        result("auroc", "emphysema", 0.85, width),
        result("macro_auroc", None, 0.82, width),
        result("f1", "pleural_effusion", f1, width),
        result("f1", "emphysema", 0.6, width),
        result("macro_f1", None, 0.65, width),
        result("kappa", "emphysema", 0.5),
    ]


def num_pixels(path, color):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    rgb = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    return int((np.abs(pixels - rgb).max(axis=-1) <= 2).sum())


def test_an_undefined_finding_has_neither_point_nor_interval(tmp_path):
    path = plot_forest(metrics(), "title", tmp_path / "forest.png")
    assert path == tmp_path / "forest.png"
    six_points, lines = num_pixels(path, "#c0504d"), num_pixels(path, "#4f81bd")
    gone = plot_forest(metrics(f1=None), "title", tmp_path / "gone.png")
    assert 0.7 < num_pixels(gone, "#c0504d") / six_points < 0.95
    assert 0.7 < num_pixels(gone, "#4f81bd") / lines < 0.95


def test_a_forest_needs_a_finding(tmp_path):
    with pytest.raises(ValueError, match=r"auroc per finding, got \['macro_auroc'\]"):
        plot_forest([result("macro_auroc", None, 0.8)], "title", tmp_path / "forest.png")


def test_bars_count_scores_and_pictures_repeat(tmp_path):
    rng = np.random.default_rng(0)
    scores = rng.random(400)
    labels = (rng.random(400) < scores).astype(float)
    first = plot_reliability(reliability(scores, labels), "t", tmp_path / "a.png")
    again = plot_reliability(reliability(scores, labels), "t", tmp_path / "b.png")
    assert first.read_bytes() == again.read_bytes()
    half = plot_reliability(reliability(scores / 2, labels), "t", tmp_path / "c.png")
    assert num_pixels(half, "#4f81bd") < 0.7 * num_pixels(first, "#4f81bd")
    with Image.open(first) as image:
        assert set(image.info) <= {"dpi"}
