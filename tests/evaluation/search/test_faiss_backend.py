"""faiss backends: deterministic, measured, never fewer answers than exact search has."""

import json
import sys

import faiss
import numpy as np
import pytest

from radtower.evaluation.search.build_index import (
    IndexOptions,
    file_sha256,
    measure_recall,
    write_features_index,
    write_index,
)
from radtower.evaluation.search.faiss_backend import resolve_parameters
from radtower.evaluation.search.search_index import SearchIndex

SMALL = {"hnsw": {"m": 4, "ef_construction": 8, "ef_search": 4}, "ivf-pq": {"num_probes": 1, "oversample": 2}}
COUNT = {"flat": 300, "hnsw": 300, "ivf-pq": 700}


@pytest.mark.parametrize("backend", ["flat", "hnsw", "ivf-pq"])
def test_finds_nearly_what_exact_search_finds(builder, backend):
    index, queries = builder.build(COUNT[backend], backend=backend), builder.features(20, seed=1)
    exact = builder.build(COUNT[backend], name="exact")
    hits, true = index.search(queries, 10), exact.search(queries, 10)
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(hits.rows, true.rows, strict=True)])
    assert shared >= (1.0 if backend == "flat" else 0.9)
    best = hits.rows == true.rows
    np.testing.assert_allclose(hits.scores[best], true.scores[best], atol=1e-6)
    assert (np.diff(hits.scores, axis=1) <= 0).all()


@pytest.mark.parametrize("backend", ["flat", "hnsw", "ivf-pq"])
def test_the_same_vectors_give_the_same_file(builder, backend):
    first, second = (builder.build(COUNT[backend], backend=backend, name=name) for name in "ab")
    assert first.about.faiss_sha256 == second.about.faiss_sha256
    assert (first.folder / "index.faiss").read_bytes() == (second.folder / "index.faiss").read_bytes()
    if backend != "flat":
        other = builder.build(COUNT[backend], backend=backend, name="c", seed=1)
        assert other.about.faiss_sha256 != first.about.faiss_sha256


@pytest.mark.parametrize(("backend", "threads"), [("hnsw", 1), ("flat", 2)])
def test_a_graph_is_built_by_one_thread(builder, tmp_path, backend, threads):
    before, seen = faiss.omp_get_max_threads(), []
    features, items = builder.features(700), builder.items(700)
    faiss.omp_set_num_threads(2)
    try:
        write_features_index(
            features,
            items,
            tmp_path / "index",
            IndexOptions(backend=backend),
            lambda done: seen.append((done, faiss.omp_get_max_threads())),
        )
        assert seen == [(700, threads)]
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)


def test_recall_is_that_of_the_items_themselves_left_out(builder):
    index = builder.build(300, backend="hnsw", parameters=SMALL["hnsw"], num_recall_queries=300)
    recall = index.about.recall
    assert (recall.k, recall.num_queries) == (10, 300)
    vectors = index.vectors.double().numpy()
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    true = np.argsort(-scores, axis=1)[:, :10]
    rows = index._source.candidates(index.vectors.numpy(), 11, None)
    shares = []
    for row in range(300):
        found = [other for other in rows[row] if other not in (row, -1)]
        kept = sorted(found, key=lambda other, row=row: -scores[row, other])[:10]
        # An incomplete answer is completed by comparing everything.
        shares.append(1.0 if (rows[row] == -1).any() else len(set(kept) & set(true[row])) / 10)
    assert recall.value == pytest.approx(np.mean(shares))
    assert 0.3 < recall.value < 1
    assert recall.ci_low < recall.value < recall.ci_high
    assert builder.build(300, name="flat", backend="flat").about.recall is None
    few = builder.build(10, name="few", backend="hnsw")
    assert few.about.recall is None
    assert measure_recall(few.vectors, few._source) is None


def test_one_query_has_no_interval(builder):
    with pytest.raises(ValueError, match="num_recall_queries must be at least 2, got 1"):
        builder.build(30, backend="hnsw", num_recall_queries=1)


def test_equal_vectors_are_all_right(builder):
    index = builder.build(60, backend="hnsw")
    vectors = index.vectors[:1].repeat(60, 1)

    class Last:
        def candidates(self, queries, k, passes):
            return np.tile(np.arange(60 - k, 60), (len(queries), 1))

    assert measure_recall(vectors, Last()).value == 1.0


@pytest.mark.parametrize("backend", ["flat", "hnsw", "ivf-pq"])
@pytest.mark.parametrize("few", [0, 10_000])
def test_filters_are_exact_and_nothing_is_missing(builder, backend, few, monkeypatch):
    monkeypatch.setattr("radtower.evaluation.search.nearest._FEW", few)
    index = builder.build(COUNT[backend], backend=backend, parameters=SMALL.get(backend, {}))
    queries = builder.features(8, seed=1)
    passes = ((index.items["split"] == "test") & (index.items["Nodule"] == 1).fillna(False)).to_numpy()
    k = int(passes.sum()) - 3
    hits = index.search(queries, k, ["split=test", "finding=nodule"])
    assert hits.rows.shape == (8, k)
    assert passes[hits.rows].all()
    assert all(len(set(row)) == k for row in hits.rows)
    every = index.search(queries, 10_000, ["split=test", "finding=nodule"])
    assert (np.sort(every.rows) == np.flatnonzero(passes)).all()
    everything = index.search(queries, COUNT[backend])
    assert (np.sort(everything.rows) == np.arange(COUNT[backend])).all()


def test_few_that_pass_are_compared_exactly(builder):
    index = builder.build(700, backend="ivf-pq", parameters=SMALL["ivf-pq"])
    exact = builder.build(700, name="exact")
    queries = builder.features(8, seed=1)
    expected = exact.search(queries, 10, ["split=test"])
    np.testing.assert_array_equal(index.search(queries, 10, ["split=test"]).rows, expected.rows)


def test_files_of_another_index_are_refused(builder):
    index = builder.build(300, backend="flat")
    folder = index.folder
    whole = (folder / "index.faiss").read_bytes()
    (folder / "index.faiss").write_bytes(whole[:-1] + b"\0")
    with pytest.raises(ValueError, match=r"index\.faiss must be the file that index\.json describes, sha256"):
        SearchIndex(folder)
    others = {
        "count": builder.build(301, backend="flat", name="longer"),
        "dimension": builder.build(300, 9, backend="flat", name="wider"),
        "kind": builder.build(300, backend="hnsw", name="graph"),
    }
    for what, other in others.items():
        _replace_faiss(folder, (other.folder / "index.faiss").read_bytes(), other.about.faiss_sha256)
        with pytest.raises(
            ValueError, match=rf"index\.faiss must be .*'{what}'.*, got .*Build the index again"
        ):
            SearchIndex(folder)


def test_another_metric_and_a_damaged_file_are_refused(builder):
    folder = builder.build(300, backend="flat").folder
    path = folder / "index.faiss"
    faiss.write_index(faiss.IndexFlat(8, faiss.METRIC_L2), str(path))
    _replace_faiss(folder, path.read_bytes(), file_sha256(path))
    with pytest.raises(ValueError, match=r"'metric': 0}, got .*'metric': 1}"):
        SearchIndex(folder)
    path.write_bytes(path.read_bytes()[:20])
    _replace_faiss(folder, path.read_bytes(), file_sha256(path))
    with pytest.raises(ValueError, match=r"index\.faiss must be readable by faiss, got an error"):
        SearchIndex(folder)


def _replace_faiss(folder, content, sha256):
    (folder / "index.faiss").write_bytes(content)
    about = json.loads((folder / "index.json").read_text()) | {"faiss_sha256": sha256}
    (folder / "index.json").write_text(json.dumps(about))


def test_parameters_follow_from_the_data():
    large = resolve_parameters("ivf-pq", {}, 1_000_000, 128, 3)
    assert large == {
        **{"num_lists": 4000, "code_bytes": 32, "num_probes": 125, "oversample": 20},
        **{"code_bits": 8, "seed": 3},
    }
    small = resolve_parameters("ivf-pq", {"num_probes": 99}, 700, 12, 0)
    assert (small["num_lists"], small["code_bytes"], small["code_bits"], small["num_probes"]) == (
        17,
        3,
        4,
        17,
    )
    assert resolve_parameters("ivf-pq", {"num_lists": 0}, 700, 7, 0)["code_bytes"] == 1
    assert resolve_parameters("hnsw", {"m": 8}, 5, 4, 1) == {
        "m": 8,
        "ef_construction": 80,
        "ef_search": 128,
        "seed": 1,
    }
    assert resolve_parameters("flat", {}, 5, 4, 1) == {}


@pytest.mark.parametrize(
    ("backend", "given", "kind", "message"),
    [
        (
            "hnsw",
            {"num_lists": 3},
            KeyError,
            r"of hnsw must be of m, ef_construction, ef_search, got \['num_lists'\]",
        ),
        ("flat", {"m": 3}, KeyError, r"of flat must be of none, got \['m'\]"),
        ("hnsw", {"m": -1}, ValueError, r"must not be negative, got {'m': -1}"),
        ("ivf-pq", {"code_bytes": 5}, ValueError, "code_bytes must divide the 12 numbers of a vector, got 5"),
        ("ivf-pq", {"num_lists": 701}, ValueError, "num_lists must not exceed the 700 items, got 701"),
    ],
)
def test_parameters_that_cannot_be_are_refused(backend, given, kind, message):
    with pytest.raises(kind, match=message):
        resolve_parameters(backend, given, 700, 12, 0)


def test_parameters_are_refused_before_the_vectors_are_asked_for(builder, tmp_path):
    def blocks():
        raise AssertionError("asked for")
        yield

    source = builder.features(1).source
    for backend, given in (("exact", {"m": 3}), ("flat", {"m": 3}), ("hnsw", {"x": 3})):
        with pytest.raises(KeyError, match=f"parameters of {backend} must be .*got"):
            write_index(
                source,
                blocks(),
                builder.items(3),
                tmp_path / "i",
                IndexOptions(backend=backend, parameters=given),
            )


def test_too_few_items_to_train_on_are_refused():
    with pytest.raises(ValueError, match="ivf-pq must have at least 624 items to train on, got 623"):
        resolve_parameters("ivf-pq", {}, 623, 12, 0)
    assert resolve_parameters("ivf-pq", {}, 9984, 12, 0)["code_bits"] == 8
    assert resolve_parameters("ivf-pq", {}, 9983, 12, 0)["code_bits"] == 4


def test_without_faiss_exact_search_works_and_the_others_name_the_extra(builder, monkeypatch):
    folders = [builder.build(30, name=name, backend=name).folder for name in ("exact", "flat")]
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.delitem(sys.modules, "radtower.evaluation.search.faiss_backend")
    assert len(SearchIndex(folders[0])) == len(builder.build(30, name="again")) == 30
    with pytest.raises(ImportError, match=r"needs faiss .* Run pip install 'radtower\[faiss\]', or take the"):
        SearchIndex(folders[1])
    with pytest.raises(ImportError, match="needs faiss"):
        builder.build(30, name="new", backend="flat")
    assert not (builder.folder / "new").exists()
