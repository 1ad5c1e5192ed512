"""An index answers as a slow comparison of everything does, and refuses what it does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from radtower.evaluation.features import Features
from radtower.evaluation.search import build_index as building
from radtower.evaluation.search.build_index import IndexOptions, write_index
from radtower.evaluation.search.index_about import IndexAbout
from radtower.evaluation.search.items import make_items
from radtower.evaluation.search.search_index import SearchIndex


def by_hand(index, queries, k, passes=None, is_out=None):
    """Everything compared in float64 and sorted; rows of equal similarity in their order."""
    scores = queries.vectors.double().numpy() @ index.vectors.double().numpy().T
    if passes is not None:
        scores[:, ~passes] = -np.inf
    if is_out is not None:
        scores[is_out] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_finds_what_is_nearest(builder, dtype):
    index, queries = builder.build(dtype=dtype), builder.features(5, seed=1)
    hits = index.search(queries, 7)
    rows, scores = by_hand(index, queries, 7)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_allclose(hits.scores, scores, atol=1e-6)
    assert (hits.k, hits.num_matching, hits.query_ids, len(index)) == (7, 40, queries.ids, 40)


def test_filters_come_before_the_nearest(builder):
    index, queries = builder.build(), builder.features(5, seed=1)
    passes = (index.items["split"] == "test").to_numpy() & (index.items["Nodule"] == 1).fillna(
        False
    ).to_numpy()
    hits = index.search(queries, 3, ["split=test", "finding=nodule"])
    np.testing.assert_array_equal(hits.rows, by_hand(index, queries, 3, passes)[0])
    assert hits.num_matching == passes.sum()
    all_of_them = index.search(queries, 40, ["split=test", "finding=nodule"])
    assert all_of_them.k == passes.sum()
    assert (np.sort(all_of_them.rows) == np.flatnonzero(passes)).all()


@pytest.mark.parametrize("backend", ["exact", "hnsw"])
def test_the_query_or_its_study_is_left_out(builder, backend):
    index = builder.build(backend=backend)
    ids = ["v4", "s3", "v7", "unknown"]
    vectors = index.vectors[torch.tensor([4, 6, 7, 0])].clone()
    queries = Features(vectors, ids, index.about.source)
    item = index.search(queries, 5, leave_out="item")
    is_out = np.zeros((4, 40), dtype=bool)
    is_out[[0, 2], [4, 7]] = True
    np.testing.assert_array_equal(item.rows, by_hand(index, queries, 5, is_out=is_out)[0])
    study = index.search(queries, 40, leave_out="study")
    is_out[[0, 0, 1, 1, 2, 2], [4, 5, 6, 7, 6, 7]] = True
    expected = by_hand(index, queries, 40, is_out=is_out)
    expected[0][np.isinf(expected[1])] = -1
    np.testing.assert_array_equal(study.rows, expected[0])
    assert np.isneginf(study.scores[:3, -2:]).all()
    assert [len(index.hits_of(study, query)) for query in range(4)] == [38, 38, 38, 40]


def test_hits_say_what_was_found(builder):
    index = builder.build()
    query = Features(index.vectors[7:8].clone(), ["q"], replace(index.about.source, kind="text"))
    first, second = index.hits_of(index.search(query, 2), 0)
    findings = [name for name in ("Nodule", "Pleural effusion") if index.items[name].iloc[7] is not None]
    known = [name for name in findings if (index.items[name] == 1).fillna(False).iloc[7]]
    assert first == {
        "rank": 1,
        "item_id": "v7",
        "study_id": "s3",
        "split": "validation",
        "score": pytest.approx(1.0, abs=1e-6),
        "findings": known,
    }
    assert second["rank"] == 2


def test_what_an_item_does_not_have_is_null(builder, tmp_path):
    items = make_items("ab", {"split": ["", "test"], "study_id": ["", "s"]})
    index = SearchIndex.from_features(builder.features(2), items, tmp_path / "gaps")
    hits = index.hits_of(index.search(Features(index.vectors[:1].clone(), ["q"], index.about.source), 1), 0)
    assert (hits[0]["item_id"], hits[0]["split"], hits[0]["study_id"]) == ("a", None, None)
    assert index.num_matching(["split=test"]) == 1


def test_more_than_there_are_gives_all(builder):
    hits = builder.build(5).search(builder.features(1, seed=1), 10)
    assert (hits.k, hits.num_matching) == (5, 5)
    assert sorted(hits.rows[0]) == list(range(5))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        builder.build(5).search(builder.features(1), 0)


def test_vectors_that_are_no_unit_vectors_are_compared_by_their_product(tmp_path, builder):
    source = replace(builder.features(1).source, is_normalized=False)
    vectors = torch.tensor([[1.0, 0.0], [3.0, 3.0], [0.0, 2.0]])
    index = SearchIndex.from_features(
        Features(vectors, ["a", "b", "c"], source), make_items("abc"), tmp_path / "i"
    )
    assert index.about.metric == "dot"
    hits = index.search(Features(torch.tensor([[1.0, 0.5]]), ["q"], source), 3)
    assert (hits.rows.tolist(), hits.scores.tolist()) == ([[1, 0, 2]], [[4.5, 1.0, 1.0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_id": "n", "model_hash": None}, "differences: model_id 'm', not 'n'. "),
        ({"model_revision": None, "model_hash": None}, "differences: model_revision 'abc', not None. "),
        ({"processor_hash": "456"}, "differences: processor_hash '123', not '456'"),
        ({"model_hash": "f1", "model_id": "n"}, "differences: model_hash 'f0', not 'f1'. "),
        ({"is_normalized": False}, "is_normalized True, not False; metric 'cosine', not 'dot'"),
    ],
)
def test_queries_of_another_model_are_refused(builder, change, message):
    index, queries = builder.build(), builder.features(1)
    with pytest.raises(ValueError, match=message):
        index.search(replace(queries, source=replace(queries.source, **change)))


def test_queries_of_the_same_weights_in_another_folder_are_answered(builder):
    index, queries = builder.build(), builder.features(1)
    moved = replace(queries, source=replace(queries.source, model_id="moved", model_revision=None))
    assert index.search(moved, 2).rows.tolist() == index.search(queries, 2).rows.tolist()


def test_queries_of_another_width_are_refused_and_texts_have_no_image_processor(builder):
    index = builder.build()
    with pytest.raises(ValueError, match="differences: dimension 8, not 9"):
        index.search(builder.features(1, 9))
    texts = builder.features(2, kind="text", processor_hash=None)
    assert index.search(texts).rows.shape == (2, 10)


@pytest.mark.parametrize("backend", ["exact", "hnsw"])
def test_queries_that_are_no_vectors_of_their_metric_are_refused(builder, backend):
    index, queries = builder.build(backend=backend), builder.features(3)
    with pytest.raises(ValueError, match="must have length 1, got 3 others among rows 0 to 2"):
        index.search(replace(queries, vectors=queries.vectors * 2))
    queries.vectors[1, 0] = float("nan")
    with pytest.raises(ValueError, match="must be finite, got 1 with NaN or infinity among rows 0 to 2"):
        index.search(queries)


def test_vectors_that_depend_on_their_batch_are_no_index(builder, tmp_path):
    features = builder.features(3, kind="text", depends_on_batch=True)
    with pytest.raises(ValueError, match="must not depend on their batch"):
        SearchIndex.from_features(features, make_items("abc"), tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_an_index_is_whole_or_not_there(builder, tmp_path, monkeypatch):
    first = builder.build()
    before = first.search(builder.features(2, seed=1)).rows

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(building, "write_about", fail)
    with pytest.raises(OSError, match="disk full"):
        builder.build(30)
    again = SearchIndex(tmp_path / "index")
    np.testing.assert_array_equal(again.search(builder.features(2, seed=1)).rows, before)
    monkeypatch.undo()
    assert len(builder.build(30)) == 30
    assert {path.name for path in tmp_path.iterdir()} == {"index"}
    assert len(list((tmp_path / "index").iterdir())) == 3


def test_an_index_that_is_replaced_is_gone_before_its_files_change(builder, tmp_path, monkeypatch):
    builder.build(30, backend="hnsw")
    builder.build(40)
    names = {path.name for path in (tmp_path / "index").iterdir()}
    assert names == {"index.json", "vectors.safetensors", "items.parquet"}
    replace_file = Path.replace

    def fail_at_items(path, target):
        if path.name == "items.parquet":
            raise OSError("disk full")
        return replace_file(path, target)

    monkeypatch.setattr(Path, "replace", fail_at_items)
    with pytest.raises(OSError, match="disk full"):
        builder.build(30)
    with pytest.raises(FileNotFoundError, match=r"an index must have index\.json"):
        SearchIndex(tmp_path / "index")


def test_a_folder_with_something_else_is_left_alone(builder, tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="must be new, empty or an index, got 'index' with something else"):
        builder.build()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="got 'file' with something else"):
        builder.build(name="file")
    with pytest.raises(ValueError, match="backend must be one of exact, flat, hnsw, ivf-pq, got 'annoy'"):
        builder.build(name="new", backend="annoy")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schema_version", 2, "schema_version must be 1, got 2"),
        ("count", 41, r"vectors\.safetensors must be \(41, 8, 'float32'\) as index\.json says, got \(40, 8"),
        ("dimension", 9, r"must be \(40, 9, 'float32'\)"),
        ("dtype", "float16", r"must be \(40, 8, 'float16'\)"),
        ("metric", "dot", "metric must be 'cosine' where is_normalized is True, got 'dot'"),
        ("backend", "flat", r"must have its files, got no \['index\.faiss'\]"),
        ("finding_columns", ["Cyst"], r"no \['Cyst'\]"),
        ("has_text", True, r"no \['report'\]"),
        ("surprise", 1, r"invalid or unknown \['surprise'\]"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(builder, name, value, message):
    folder = builder.build().folder
    content = json.loads((folder / "index.json").read_text()) | {name: value}
    (folder / "index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        SearchIndex(folder)


def test_what_is_no_index_is_refused(builder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"an index must have index\.json, got none in"):
        SearchIndex(tmp_path)
    folder = builder.build().folder
    (folder / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index\.json must be JSON"):
        SearchIndex(folder)
    (folder / "index.json").write_text("[]")
    with pytest.raises(ValueError, match="schema_version must be 1, got None"):
        SearchIndex(folder)


def test_other_vectors_of_the_right_shape_are_searched_as_they_are_but_not_of_another_count(builder):
    folder = builder.build().folder
    save_file({"vectors": torch.ones(39, 8)}, folder / "vectors.safetensors")
    with pytest.raises(ValueError, match=r"got \(39, 8, 'float32'\)"):
        SearchIndex(folder)


def test_blocks_are_streamed(builder, tmp_path):
    features = builder.features(40)
    blocks = iter([features.vectors[:25].numpy(), features.vectors[25:].numpy()])
    folder = tmp_path / "new" / "streamed"
    about = write_index(features.source, blocks, builder.items(40), folder)
    assert isinstance(about, IndexAbout)
    assert torch.equal(SearchIndex(folder).vectors, features.vectors)
    for nothing in ([], [np.ones(3, np.float32)]):
        with pytest.raises(ValueError, match=r"must come in blocks \(n, E\), got (none|\(3,\))"):
            write_index(features.source, nothing, builder.items(3), tmp_path / "empty")


def test_a_copy_is_the_same_index(builder, tmp_path):
    index, queries = builder.build(dataset="cohort"), builder.features(3, seed=1)
    copy = SearchIndex.from_pretrained(index.save_pretrained(tmp_path / "copy"))
    assert copy.about == index.about
    np.testing.assert_array_equal(copy.search(queries).rows, index.search(queries).rows)
    assert index.save_pretrained(index.folder) == index.folder
    graph = builder.build(30, name="graph", backend="hnsw")
    assert len(SearchIndex(graph.save_pretrained(tmp_path / "copy"))) == 30
    assert index.save_pretrained(tmp_path / "copy") == tmp_path / "copy"
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names == {"index.json", "vectors.safetensors", "items.parquet"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="new, empty or an index, got 'other'"):
        index.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="revision must be None for a folder, got 'main'"):
        SearchIndex.from_pretrained(index.folder, revision="main")


def test_half_a_copy_is_no_index(builder, tmp_path, monkeypatch):
    builder.build(30, name="old").save_pretrained(tmp_path / "copy")

    def fail(*_):
        raise OSError("disk full")

    index = builder.build()
    monkeypatch.setattr("radtower.evaluation.search.search_index.shutil.copyfile", fail)
    with pytest.raises(OSError, match="disk full"):
        index.save_pretrained(tmp_path / "copy")
    with pytest.raises(FileNotFoundError, match=r"an index must have index\.json"):
        SearchIndex(tmp_path / "copy")


def test_the_order_of_the_items_does_not_matter(builder, tmp_path):
    features, items = builder.features(40), builder.items(40)
    order = np.random.default_rng(3).permutation(40)
    shuffled = Features(features.vectors[torch.from_numpy(order)], features.ids, features.source)
    one = builder.build()
    two = SearchIndex.from_features(
        shuffled, items.iloc[order].reset_index(drop=True), tmp_path / "two", IndexOptions()
    )
    queries = builder.features(6, seed=2)
    names = [index.items["item_id"].to_numpy()[index.search(queries, 9).rows] for index in (one, two)]
    np.testing.assert_array_equal(*names)
