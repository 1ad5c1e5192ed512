import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

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


@pytest.fixture
def drawn(monkeypatch):
    """Figures in the order in which they were written."""
    figures, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def named_points(panels, panel):
    """Value, low and high of what is drawn at the height of each name."""
    ticks = zip(panels[0].get_yticks(), panels[0].get_yticklabels(), strict=True)
    names = {height: label.get_text() for height, label in ticks}
    lines = [line for line in panels[panel].lines if line.get_transform() == panels[panel].transData]
    points = {line.get_ydata()[0]: line.get_xdata()[0] for line in lines if len(line.get_xdata()) == 1}
    spans = {line.get_ydata()[0]: tuple(line.get_xdata()) for line in lines if len(line.get_xdata()) == 2}
    assert set(points) == set(spans) <= set(names)
    return {names[height]: (points[height], *spans[height]) for height in points}


def test_each_finding_has_its_own_value_and_interval(tmp_path, drawn):
    items = [
        MetricResult(
            metric=metric, finding=key, value=value, ci_low=low, ci_high=high, n_positive=positive, **WHAT
        )
        for metric, key, value, low, high, positive in [
            ("auroc", "pleural_effusion", 0.8, 0.75, 0.9, 3),
            ("auroc", "emphysema", 0.85, 0.7, 0.87, 4),
            ("macro_auroc", None, 0.82, 0.78, 0.88, None),
            ("f1", "pleural_effusion", 0.5, 0.4, 0.65, 3),
            ("f1", "emphysema", 0.6, 0.35, 0.7, 4),
            ("macro_f1", None, 0.55, 0.45, 0.6, None),
        ]
    ]
    plot_forest(items, "title", tmp_path / "forest.png")
    panels = drawn[0].axes
    assert [axes.get_title() for axes in panels] == ["AUROC with 95 % interval", "F1 with 95 % interval"]
    assert named_points(panels, 0) == {
        "pleural effusion  (3 / 9)": (0.8, 0.75, 0.9),
        "emphysema  (4 / 9)": (0.85, 0.7, 0.87),
        "mean of the findings": (0.82, 0.78, 0.88),
    }
    assert named_points(panels, 1) == {
        "pleural effusion  (3 / 9)": (0.5, 0.4, 0.65),
        "emphysema  (4 / 9)": (0.6, 0.35, 0.7),
        "mean of the findings": (0.55, 0.45, 0.6),
    }
    # From the top: the findings in their order, then the mean; whatever is drawn can be seen.
    ticks = zip(panels[0].get_yticks(), panels[0].get_yticklabels(), strict=True)
    heights = {label.get_text(): panels[0].transData.transform((0, tick))[1] for tick, label in ticks}
    assert sorted(heights, key=lambda name: -heights[name]) == [
        "pleural effusion  (3 / 9)",
        "emphysema  (4 / 9)",
        "mean of the findings",
    ]
    for axes, lowest in zip(panels, (0.7, 0.35), strict=True):
        assert axes.get_xlim()[0] < lowest
        assert axes.get_xlim()[1] >= 1


def test_the_reliability_curve_shows_the_share_over_the_score(tmp_path, drawn):
    scores = np.array([0.02, 0.04, 0.25, 0.93, 0.97, 0.95])
    labels = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    plot_reliability(reliability(scores, labels), "t", tmp_path / "r.png")
    above, below = drawn[0].axes
    line = next(line for line in above.lines if line.get_label().startswith("scores of all findings"))
    np.testing.assert_allclose(line.get_xdata(), [0.03, 0.25, 0.95])
    np.testing.assert_allclose(line.get_ydata(), [1 / 2, 1, 1 / 3])
    bars = {round(bar.get_x() + bar.get_width() / 2, 3): bar.get_height() for bar in below.patches}
    assert {center: num for center, num in bars.items() if num} == {0.05: 2, 0.25: 1, 0.95: 3}
    assert above.get_ylabel() == "share present in gold"
    assert above.get_ylim()[0] < above.get_ylim()[1]


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
