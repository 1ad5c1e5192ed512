import numpy as np
import pytest

pytest.importorskip("matplotlib")

from radtower.evaluation.calibration import reliability
from radtower.evaluation.reports.pictures.interval_plots import draw_forest, draw_reliability

VALUES = {
    ("auroc", "pleural_effusion"): (0.8, 0.75, 0.9, 3),
    ("auroc", "emphysema"): (0.85, 0.7, 0.87, 4),
    ("macro_auroc", None): (0.82, 0.78, 0.88, None),
    ("f1", "pleural_effusion"): (0.5, 0.4, 0.65, 3),
    ("f1", "emphysema"): (0.6, 0.35, 0.7, 4),
    ("macro_f1", None): (0.55, 0.45, 0.6, None),
}


@pytest.fixture
def items(make_metric):
    def make(**changed):
        return [
            make_metric(metric, finding=key, value=value, ci_low=low, ci_high=high, n_positive=positive, n=9)
            for (metric, key), (value, low, high, positive) in VALUES.items()
            if metric not in changed.get("without", ())
        ]

    return make


def named_points(panels, panel):
    """Value, low and high of what is drawn nearest to each name."""
    ticks = zip(panels[0].get_yticks(), panels[0].get_yticklabels(), strict=True)
    names = {height: label.get_text() for height, label in ticks}
    lines = [line for line in panels[panel].lines if line.get_transform() == panels[panel].transData]
    found = {}
    for line in lines:
        height = line.get_ydata()[0]
        xs = tuple(float(x) for x in line.get_xdata())
        found.setdefault(names[round(height)], {}).setdefault(line.get_color(), []).append(xs)
    return found


def test_each_finding_has_its_own_value_and_interval(items):
    figure = draw_forest({"tower": items()}, ("auroc", "f1"), "Whose labels")
    panels = figure.axes
    assert (figure.get_suptitle(), figure.get_supxlabel()) == ("Whose labels", "in brackets: present / known")
    levels = [line.get_xdata()[0] for line in panels[0].lines if line.get_transform() != panels[0].transData]
    assert 0.5 in levels  # chance of AUROC
    assert [axes.get_title() for axes in panels] == ["AUROC with interval", "F1 with interval"]
    blue = "#0072b2"
    assert named_points(panels, 0) == {
        "mean of the findings": {blue: [(0.78, 0.88), (0.82,)]},
        "pleural effusion  (3 / 9)": {blue: [(0.75, 0.9), (0.8,)]},
        "emphysema  (4 / 9)": {blue: [(0.7, 0.87), (0.85,)]},
    }
    assert named_points(panels, 1)["emphysema  (4 / 9)"] == {blue: [(0.35, 0.7), (0.6,)]}
    # From the top: the mean, then the findings in their order; whatever is drawn can be seen.
    ticks = zip(panels[0].get_yticks(), panels[0].get_yticklabels(), strict=True)
    heights = {label.get_text(): panels[0].transData.transform((0, tick))[1] for tick, label in ticks}
    assert sorted(heights, key=lambda name: -heights[name]) == [
        "mean of the findings",
        "pleural effusion  (3 / 9)",
        "emphysema  (4 / 9)",
    ]
    for axes, lowest in zip(panels, (0.5, 0.35), strict=True):  # 0.5: chance of AUROC can be seen, too
        assert axes.get_xlim()[0] < lowest
        assert axes.get_xlim()[1] > (0.9 if axes is panels[0] else 0.7)


def test_a_metric_that_is_not_there_has_no_panel(items):
    panels = draw_forest({"tower": items(without=("auroc", "macro_auroc"))}, ("auroc", "f1")).axes
    assert [axes.get_title() for axes in panels] == ["F1 with interval"]


def test_models_have_a_color_and_a_place_of_their_own(items):
    figure = draw_forest({"a": items(), "b": items()})
    found = named_points(figure.axes, 0)["emphysema  (4 / 9)"]
    assert found == {"#0072b2": [(0.7, 0.87), (0.85,)], "#d55e00": [(0.7, 0.87), (0.85,)]}
    heights = {
        line.get_color(): line.get_ydata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 1
    }
    assert heights["#0072b2"] != heights["#d55e00"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_an_undefined_finding_has_neither_point_nor_interval(items, make_metric):
    metrics = [*items()[:1], make_metric("auroc", None, finding="nodule", n=7, n_positive=0)]
    axes = draw_forest({"tower": metrics}).axes[0]
    assert list(named_points([axes], 0)) == ["pleural effusion  (3 / 9)"]
    assert [text.get_text() for text in axes.texts] == ["undefined"]
    assert axes.get_yticklabels()[2].get_text() == "nodule  (0 / 7)"


def test_sizes_that_models_do_not_share_are_not_written(make_metric):
    metrics = {name: [make_metric(finding="x" * 60, n=n, n_positive=1)] for name, n in (("a", 5), ("b", 6))}
    assert draw_forest(metrics).axes[0].get_yticklabels()[1].get_text() == "x" * 41 + "..."


def test_a_forest_needs_a_finding(make_metric):
    with pytest.raises(ValueError, match=r"auroc or f1 per finding, got \['macro_auroc'\]"):
        draw_forest({"tower": [make_metric("macro_auroc")]}, ("auroc", "f1"))


def test_the_reliability_curve_shows_the_share_over_the_score():
    scores = np.array([0.02, 0.04, 0.25, 0.93, 0.97, 0.95])
    labels = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    figure = draw_reliability({"tower": reliability(scores, labels)}, "title")
    above, below = figure.axes
    assert figure.get_suptitle() == "title"
    assert (below.get_xlabel(), below.get_yscale(), below.get_ylim()[0]) == ("score, P(present)", "symlog", 0)
    line = next(line for line in above.lines if line.get_label().startswith("calibration error"))
    np.testing.assert_allclose(line.get_xdata(), [0.03, 0.25, 0.95])
    np.testing.assert_allclose(line.get_ydata(), [1 / 2, 1, 1 / 3])
    bars = {round(bar.get_x() + bar.get_width() / 2, 3): bar.get_height() for bar in below.patches}
    assert {center: num for center, num in bars.items() if num} == {0.05: 2, 0.25: 1, 0.95: 3}
    assert above.get_ylabel() == "share present"
    assert above.get_ylim()[0] < above.get_ylim()[1]


def test_bars_of_two_models_stand_side_by_side():
    curves = {
        name: reliability(np.array([score]), np.array([1.0])) for name, score in (("a", 0.12), ("b", 0.18))
    }
    above, below = draw_reliability(curves).axes
    bars = [(round(bar.get_x(), 4), round(bar.get_width(), 4)) for bar in below.patches if bar.get_height()]
    assert bars == [(0.105, 0.045), (0.15, 0.045)]
    labels = [text.get_text() for text in above.get_legend().get_texts()]
    assert labels == ["score = share", "a, calibration error 0.880", "b, calibration error 0.820"]
    # Counts are read as numbers, whatever a name may mean as a formula.
    assert below.yaxis.get_major_formatter()(0.0) == "0"


def test_reliability_needs_a_curve():
    with pytest.raises(ValueError, match="curves must hold a model, got none"):
        draw_reliability({})
