import numpy as np
import pytest
from sklearn.decomposition import PCA

pytest.importorskip("matplotlib")

from radtower.evaluation.reports.pictures.drawing import png_bytes
from radtower.evaluation.reports.pictures.embedding_map import draw_embedding_map, map_embeddings


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(20, 6)) * np.array([5, 3, 1, 1, 1, 1])
    return images, images + rng.normal(size=(20, 6)) * 0.1 + np.array([0, 0, 0, 0, 0, 9])


def test_the_map_is_that_of_scikit_learn(vectors):
    images, _ = vectors
    found = map_embeddings(images)
    reference = PCA(n_components=2).fit(images)
    np.testing.assert_allclose(np.abs(found.images), np.abs(reference.transform(images)), atol=1e-9)
    assert found.explained == pytest.approx(reference.explained_variance_ratio_)
    assert found.reports is None
    assert found.describe() == "Principal components. A map in two dimensions distorts distances."


def test_the_gap_between_the_kinds_is_taken_out_and_told(vectors):
    images, reports = vectors
    found = map_embeddings(images, reports)
    np.testing.assert_allclose(found.images.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(found.reports.mean(axis=0), 0, atol=1e-9)
    assert found.gap == pytest.approx(np.linalg.norm(images.mean(axis=0) - reports.mean(axis=0)))
    # With the gap out, a report lies by its scan, not by the other reports.
    assert np.linalg.norm(found.images - found.reports, axis=1).max() < 0.5
    assert "the means lie 8.99 apart" in found.describe()


def test_the_sign_of_a_direction_is_fixed(vectors):
    images, _ = vectors
    directions = np.linalg.lstsq(images - images.mean(axis=0), map_embeddings(images).images, rcond=None)[0]
    largest = np.abs(directions).argmax(axis=0)
    assert (directions[largest, [0, 1]] > 0).all()


def test_two_dimensions_of_one(vectors):
    found = map_embeddings(np.arange(5.0)[:, None])
    np.testing.assert_allclose(found.images, np.c_[np.arange(5) - 2, np.zeros(5)])
    assert found.explained == (1.0, 0.0)


def test_a_collapsed_model_is_one_point():
    found = map_embeddings(np.ones((4, 3)))
    np.testing.assert_allclose(found.images, 0)
    assert found.explained == (0.0, 0.0)
    assert png_bytes(draw_embedding_map(found, {}, "note"))


def test_tsne_is_seeded_and_says_so(vectors):
    images, reports = vectors
    first = map_embeddings(images, reports, "tsne", seed=1)
    again = map_embeddings(images, reports, "tsne", seed=1)
    np.testing.assert_array_equal(first.images, again.images)
    assert np.abs(first.images - map_embeddings(images, reports).images).max() > 1
    axes = draw_embedding_map(first, {}, "n").axes[0]
    assert (axes.get_xlabel(), axes.get_title()) == ("", "t-SNE, perplexity 13, seed 1")
    assert first.explained is None
    assert first.describe().startswith("t-SNE, perplexity 13, seed 1. Each kind is centered")


def test_what_is_present_is_drawn_on_top_in_its_color(vectors):
    labels = {"lung_nodule": np.array([1] * 3 + [0] * 15 + [-100] * 2)}
    figure = draw_embedding_map(map_embeddings(*vectors), labels, "Not for diagnosis.")
    first, panel = figure.axes
    assert figure.get_suptitle() == "Not for diagnosis."
    assert first.get_title() == "Principal components"
    shares = map_embeddings(*vectors).explained
    assert first.get_xlabel() == f"first component, {shares[0]:.0%} of the variance"
    assert first.get_ylabel() == f"second, {shares[1]:.0%}"
    assert [text.get_text() for text in first.get_legend().get_texts()] == [
        "scan",
        "report, joined with its scan",
    ]
    assert [len(dots.get_offsets()) for dots in first.collections] == [20, 20]
    assert len(first.lines) == 20  # each pair is joined
    assert panel.get_title() == "lung nodule  (3 / 18)"
    assert [len(dots.get_offsets()) for dots in panel.collections] == [2, 2, 15, 15, 3, 3]
    found = map_embeddings(*vectors)
    np.testing.assert_allclose(panel.collections[4].get_offsets(), found.images[:3])
    np.testing.assert_allclose(panel.collections[5].get_offsets(), found.reports[:3])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["absent, scan", "absent, report", "present, scan", "present, report"]


@pytest.mark.slow
def test_twelve_findings_at_most(vectors):
    labels = {f"f{i}": np.zeros(20) for i in range(15)}
    assert len(draw_embedding_map(map_embeddings(*vectors), labels, "n").axes) == 13


@pytest.mark.slow
def test_maps_repeat(vectors):
    labels = {"x": np.array([1, 0] * 10)}
    first, again = (png_bytes(draw_embedding_map(map_embeddings(*vectors), labels, "n")) for _ in range(2))
    assert first == again


def test_what_is_no_map_is_refused(vectors):
    images, reports = vectors
    with pytest.raises(ValueError, match="method must be one of pca, tsne, got 'umap'"):
        map_embeddings(images, method="umap")
    for wrong in ((images[:2], None), (images, reports[:5]), (images[0], None)):
        with pytest.raises(ValueError, match=r"must be \(N, E\) of one shape with N of at least 3, got"):
            map_embeddings(*wrong)
    with pytest.raises(ValueError, match="a label per scan, got 3 of x for 20"):
        draw_embedding_map(map_embeddings(images), {"x": np.zeros(3)}, "n")
