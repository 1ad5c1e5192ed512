import pandas as pd
import pytest
from matplotlib.figure import Figure

from radtower.hub_cards.labels.class_balance_plot import COLORS, plot_class_balance

COUNTS = pd.DataFrame(
    [[6, 1, 2, 0, 1], [0, 0, 3, 4, 3], [2, 2, 2, 2, 2]],
    index=["Lung nodule", "Effusion", "Edema"],
    columns=list(COLORS),
)


@pytest.fixture
def axes(tmp_path, monkeypatch):
    """What was drawn of ``COUNTS``."""
    figures, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    assert plot_class_balance(COUNTS, "title", tmp_path / "balance.png") == tmp_path / "balance.png"
    return figures[0].axes[0]


def names_by_height(axes):
    labels = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    return {tick: label.get_text() for tick, label in labels}


def height_in_picture(axes, y):
    return axes.transData.transform((0, y))[1]


def test_the_first_finding_is_on_top_as_in_the_table(axes):
    names = names_by_height(axes)
    from_top = sorted(names, key=lambda tick: -height_in_picture(axes, tick))
    assert [names[tick] for tick in from_top] == ["Lung nodule", "Effusion", "Edema"]


def test_every_bar_has_the_share_and_the_color_of_its_state(axes):
    names = names_by_height(axes)
    for bars, (state, color) in zip(axes.containers, COLORS.items(), strict=True):
        assert bars.get_label() == state.replace("_", " ")
        for bar in bars:
            name = names[round(bar.get_y() + bar.get_height() / 2)]
            before = COUNTS.loc[name, :state].iloc[:-1].sum()
            assert bar.get_width() == pytest.approx(COUNTS.loc[name, state] / 10)
            assert bar.get_x() == pytest.approx(before / 10)
            red, green, blue, _ = bar.get_facecolor()
            assert "#{:02x}{:02x}{:02x}".format(*(round(255 * c) for c in (red, green, blue))) == color


def test_the_number_of_present_ones_stands_beside_its_bar_below_its_heading(axes):
    texts = {text.get_position()[1]: text.get_text() for text in axes.texts}
    names = names_by_height(axes)
    assert {names[row]: text for row, text in texts.items() if row in names} == {
        "Lung nodule": "6",
        "Effusion": "0",
        "Edema": "2",
    }
    heading = next(row for row, text in texts.items() if text == "present")
    assert all(height_in_picture(axes, heading) > height_in_picture(axes, row) for row in names)
