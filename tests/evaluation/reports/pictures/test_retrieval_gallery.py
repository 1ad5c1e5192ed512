import numpy as np
import pytest

pytest.importorskip("matplotlib")

from radtower.evaluation.reports.pictures.drawing import png_bytes
from radtower.evaluation.reports.pictures.retrieval_gallery import (
    HIT,
    MISS,
    GalleryRow,
    best_answers,
    chosen_rows,
    draw_retrieval_gallery,
)

FINDINGS = [["nodule", "effusion"], ["nodule"], [], [f"finding_{i}" for i in range(9)]]
ROW = GalleryRow(0, (1, 0, 3), (0.91, 0.5, -0.25), (False, True, False))


def scans(row):
    volume = np.full((3, 6, 8), -1000.0)
    volume[1] = row  # the middle slice
    return volume


def draw(rows=(ROW,), load=scans, kind="report"):
    return draw_retrieval_gallery(rows, load, FINDINGS, kind, "Not for diagnosis.")


def test_the_best_answers_by_hand():
    queries = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    (row,) = best_answers(queries, queries, [2], ["a", "b", "b"], k=3)
    assert row.answers == (2, 1, 0)
    assert row.similarities == pytest.approx((1.0, 0.8, 0.6))
    assert row.are_right == (True, True, False)
    (row,) = best_answers(queries, queries, [2], ["a", "b", "b"], k=2, is_same_set=True)
    assert row.answers == (1, 0)


def test_ties_keep_the_order_of_the_table():
    same = np.ones((4, 2))
    assert best_answers(same, same, [3], range(4), k=3)[0].answers == (0, 1, 2)


@pytest.mark.parametrize(
    ("rows", "k", "same"),
    [([0], 0, False), ([0], 4, False), ([0], 3, True), ([3], 1, False), ([-1], 1, False)],
)
def test_impossible_questions_are_refused(rows, k, same):
    vectors = np.eye(3)
    with pytest.raises(ValueError, match=rf"k must be between 1 and .* got k {k} and rows"):
        best_answers(vectors, vectors, rows, range(3), k, is_same_set=same)


def test_vectors_must_pair_up():
    with pytest.raises(ValueError, match="must pair up, got 3, 2 and 3"):
        best_answers(np.eye(3), np.eye(3)[:2], [0], range(3))


def test_queries_are_drawn_without_looking():
    assert chosen_rows(100, 5) == chosen_rows(100, 5)
    assert chosen_rows(100, 5) != chosen_rows(100, 5, seed=1)
    assert chosen_rows(3, 5) == [0, 1, 2]


def test_each_answer_shows_its_scan_mark_similarity_and_findings():
    figure = draw()
    axes = figure.axes
    assert figure.get_suptitle() == (
        "Query on the left, answers by similarity. Blue frame: counts as right. =: a finding of the query.\n"
        "Not for diagnosis."
    )
    assert "row 0" in [text.get_text() for text in axes[0].texts]
    assert not any(a.axison for a in axes)
    assert [a.get_title() for a in axes] == [
        "query: report",
        "1. other  0.91",
        "2. right  0.50",
        "3. other  -0.25",
    ]
    shown = [np.unique(a.images[0].get_array()).tolist() for a in axes[1:]]
    assert shown == [[1.0], [0.0], [3.0]]
    frames = [tuple(round(c, 3) for c in a.patches[-1].get_edgecolor()[:3]) for a in axes[1:]]
    hit, miss = (tuple(round(int(c[i : i + 2], 16) / 255, 3) for i in (1, 3, 5)) for c in (HIT, MISS))
    assert frames == [miss, hit, miss]
    below = [a.texts[-1].get_text().split("\n") for a in axes[1:]]
    # What it shares with the query is marked.
    assert below[0] == ["row 1", "= nodule"]
    assert below[1] == ["row 0", "= nodule", "= effusion"]
    assert below[2] == ["row 3", "  finding 0", "  finding 1", "  finding 2", "+ 6 more"]
    assert "report of a scan with\n\nnodule\neffusion" in [t.get_text() for t in axes[0].texts]


def test_what_nobody_knows_is_not_called_normal():
    unknown = draw_retrieval_gallery([ROW], scans, [None] * 4, "report", "n").axes
    assert [axes.texts[-1].get_text() for axes in unknown[1:]] == ["row 1", "row 0", "row 3"]
    assert unknown[0].texts[0].get_text() == "report"


def test_a_scan_as_query_is_drawn():
    axes = draw(kind="scan").axes
    assert axes[0].get_title() == "query: scan"
    assert len(axes[0].images) == 1
    (row,) = best_answers(np.eye(4), np.eye(4), [2], range(4), k=1)
    without = draw([row], kind="scan").axes[0].texts[-1].get_text()
    assert without == "row 2\nno finding"


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_a_2d_image_is_drawn_from_its_least_to_its_largest_value(shape):
    image = np.linspace(100, 300, np.prod(shape)).reshape(shape)
    drawn = draw(load=lambda row: image).axes[1].images[0].get_array()
    assert drawn.shape == shape
    assert (drawn.min(), drawn.max()) == (0.0, 1.0)


def test_a_flat_image_is_black_and_not_an_error():
    drawn = draw(load=lambda row: np.full((4, 4), 7)).axes[1].images[0].get_array()
    assert (drawn == 0).all()


def test_pictures_repeat_and_name_nobody():
    assert png_bytes(draw()) == png_bytes(draw())
    texts = [text.get_text() for axes in draw().axes for text in axes.texts]
    assert all("p1" not in text for text in texts)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="query_kind must be report or scan, got 'text'"):
        draw(kind="text")
    with pytest.raises(ValueError, match="rows must hold a query, got none"):
        draw([])
    with pytest.raises(
        ValueError, match=r"must be \(Z, Y, X\) in HU, \(Y, X\) or \(Y, X, 3\), got shape \(1, 3, 6, 8\)"
    ):
        draw(load=lambda row: scans(row)[None])
