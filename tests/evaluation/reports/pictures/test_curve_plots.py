import numpy as np
import pytest

pytest.importorskip("matplotlib")

from radtower.evaluation.reports.pictures.curve_plots import draw_recall, draw_roc
from radtower.evaluation.reports.pictures.curves import GRID, Curve


def curve(height=1.0, band=True):
    y = GRID**0.5 * height
    return Curve(GRID, y, y - 0.1 if band else None, y + 0.1 if band else None, 9)


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_visible()]


def test_the_mean_comes_first_and_each_finding_has_a_panel():
    names = ["pleural_effusion", "a_very_long_finding_name_of_many_words_that_nobody_can_read_at_once", "x"]
    figure = draw_roc(
        {"tower": {name: curve(1 - i / 10) for i, name in enumerate(names)}}, {"tower": curve(0.5)}
    )
    assert titles(figure) == [
        "mean of the findings",
        "pleural effusion",
        "a very long finding name\nof many words that nobo...",
        "x",
    ]
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("1 - specificity", "sensitivity")
    for axes, height in zip(figure.axes, (0.5, 1.0, 0.9, 0.8), strict=True):
        assert any(
            list(line.get_xdata()) == [0, 1] == list(line.get_ydata()) for line in axes.lines
        )  # chance
        line = next(line for line in axes.lines if len(line.get_xdata()) > 2)
        np.testing.assert_allclose(line.get_ydata()[1:], GRID**0.5 * height)
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (0, 0)  # it starts in the corner
        assert len(axes.collections) == 1  # the band


def test_panels_without_a_finding_are_not_there():
    figure = draw_roc({"tower": {f"f{i}": curve() for i in range(4)}}, {"tower": curve()})
    assert [axes.get_visible() for axes in figure.axes] == [True] * 5 + [False] * 3
    # The lowest panel of each column has numbers below it.
    labeled = [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes[:5]]
    assert labeled == [False, True, True, True, True]


def test_a_single_finding_is_one_panel_without_a_mean():
    one = draw_roc({"tower": {"x": curve(band=False)}}, {"tower": curve(band=False)})
    assert titles(one) == ["x"]
    assert not one.axes[0].collections


def test_eighty_findings_are_thin_lines_behind_their_mean():
    figure = draw_roc({"tower": {f"f{i}": curve() for i in range(80)}}, {"tower": curve(0.5)})
    assert titles(figure) == ["mean of the findings"]
    widths = [line.get_linewidth() for line in figure.axes[0].lines]
    assert widths.count(0.4) == 80


def test_models_keep_their_color_where_one_has_no_curve():
    curves = {"a": {"x": curve()}, "b": {"x": curve(), "y": curve()}}
    figure = draw_roc(curves, {"a": curve(), "b": curve()})
    colors = [
        [line.get_color() for line in axes.lines if len(line.get_xdata()) > 2] for axes in figure.axes[:3]
    ]
    assert colors == [["#0072b2", "#d55e00"], ["#0072b2", "#d55e00"], ["#d55e00"]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def recall(level, largest=12):
    ks = np.arange(1, largest + 1)
    y = np.minimum(1, ks * level)
    return Curve(ks, y, y * 0.9, y, 5)


def test_recall_has_a_panel_per_direction_and_chance_where_it_is_known():
    curves = {"image_to_report": {"a": recall(0.1)}, "report_to_image": {"a": recall(0.2)}}
    chance = {"image_to_report": [(1, 0.05), (5, 0.25), (50, 1.0)]}
    left, right = draw_recall(curves, chance).axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a", "chance"]
    assert (left.get_xlabel(), left.get_ylabel(), left.get_xscale()) == (
        "k, items looked at",
        "recall@k",
        "log",
    )
    left.figure.draw_without_rendering()
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "2", "5", "10"]
    assert draw_recall(curves, {}).axes[0].get_legend() is None
    assert (left.get_title(), right.get_title()) == ("image to report", "report to image")
    line, dots = left.lines
    np.testing.assert_allclose(line.get_ydata()[:3], [0.1, 0.2, 0.3])
    assert dots.get_xdata().tolist() == [1, 2, 3, 4, 5]  # what lies beyond the curve is not drawn
    np.testing.assert_allclose(dots.get_ydata(), [0.05, 0.1, 0.15, 0.2, 0.25])
    assert dots.get_markevery() == [0, 4]
    assert len(right.lines) == 1
    assert list(left.get_xticks()) == [1, 2, 5, 10]


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="means must hold a curve, got none"):
        draw_roc({}, {})
    with pytest.raises(ValueError, match="curves must hold a direction, got none"):
        draw_recall({}, {})
