import re

import matplotlib as mpl
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from radtower.evaluation.reports.pictures.drawing import (
    SERIES_COLORS,
    house_style,
    new_figure,
    panel_title,
    png_bytes,
    series_color,
    series_style,
    svg_text,
    write_png,
)


def figure(label="$x$ <b>&"):
    with house_style():
        drawn = new_figure(3, 2)
        axes = drawn.subplots()
        axes.plot((0, 1), (0, 1), color=SERIES_COLORS[1])
        axes.set_title(label)
    return drawn


def test_png_repeat_and_say_nothing_about_who_made_them(tmp_path):
    path = write_png(figure(), tmp_path / "a.png")
    assert path.read_bytes() == png_bytes(figure())
    with Image.open(path) as image:
        assert set(image.info) <= {"dpi"}
        assert image.size == (330, 220)


def test_svg_takes_its_colors_from_the_page_and_keeps_its_letters():
    text = svg_text(figure(), "one")
    assert text == svg_text(figure(), "one")
    assert text.startswith("<svg ")
    assert "var(--series-1, #d55e00)" in text
    assert "var(--ink, #1f2328)" in text
    assert "$x$ &lt;b&gt;&amp;" in text
    assert "<style" not in text
    assert "<metadata" not in text
    head = text[: text.index(">")]
    assert not re.search(r" (width|height)=", head)
    assert "viewBox=" in head


def test_ids_of_two_drawings_differ():
    ids = [set(re.findall(r'id="([mpC][0-9a-f_]{6,})"', svg_text(figure(), name))) for name in ("one", "two")]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_settings_of_the_caller_are_left_alone_and_have_no_say():
    plain = png_bytes(figure())
    with mpl.rc_context({"axes.titlesize": 30, "text.color": "red"}):
        assert mpl.rcParams["text.color"] == "red"
        assert png_bytes(figure()) == plain
        assert mpl.rcParams["text.color"] == "red"


def test_a_seventh_model_differs_by_its_line():
    assert series_color(6) == series_color(0)
    assert series_style(6) != series_style(0)


def test_long_names_break_and_are_cut_visibly():
    assert panel_title("short") == "short"
    assert panel_title("") == ""
    assert panel_title("coronary artery wall calcification") == "coronary artery wall\ncalcification"
    assert panel_title("x" * 100) == "x" * 26 + "\n" + "x" * 23 + "..."
