"""What leaves the machine with an index, and that it comes back from a Hub as it was."""

import json
import subprocess
import sys

import pytest

from radtower.data import publish
from radtower.evaluation.features import write_features
from radtower.evaluation.search.items import make_items
from radtower.evaluation.search.publish_index import PushOptions, index_card, refuse_risks
from radtower.evaluation.search.search_index import SearchIndex

PUSH = """
import json, sys
from radtower.evaluation.search.search_index import SearchIndex
from radtower_command import main

first, second = sys.argv[1:]
done = SearchIndex(first).push_to_hub("tester/index")
print(json.dumps([done.is_private, done.num_deleted]))
for flags in ([], ["--json"]):
    sys.argv = ["radtower", "index", "push", second, "tester/index", *flags]
    try:
        main()
    except SystemExit as end:
        assert not end.code
"""
LOAD = """
import json, sys
from radtower.evaluation.features import read_features
from radtower.evaluation.search.search_index import SearchIndex
queries = read_features(sys.argv[1])
for revision in (None, sys.argv[2], "nowhere"):
    try:
        index = SearchIndex.from_pretrained("tester/index", revision)
    except FileNotFoundError as error:
        print(json.dumps(str(error)))
    else:
        hits = index.search(queries, 5, ["split=test"])
        names = sorted(path.name for path in index.folder.iterdir())
        print(json.dumps([index.revision, index.about.backend, hits.rows.tolist(), names]))
"""


@pytest.mark.slow  # three processes that import torch
def test_an_index_comes_back_from_a_hub_in_another_process(builder, local_hub, tmp_path):
    graph, exact = builder.build(60, name="graph", backend="hnsw"), builder.build(60, name="exact")
    queries = builder.features(3, seed=1)
    write_features(queries, tmp_path / "queries")
    pushed = _run(local_hub, tmp_path, PUSH, graph.folder, exact.folder)
    repo = local_hub.repo("datasets", "tester/index")
    first, second, third = pushed.split("\n", 2)
    assert json.loads(first) == [True, 0]
    where = f"{local_hub.url}/datasets/tester/index"
    commit = repo.commits[2].oid
    assert second == f"Pushed to {where} (private), commit {commit}: files: 2 changed, 1 deleted"
    assert json.loads(third) == {
        "repo_id": "tester/index",
        "url": where,
        "commit": commit,
        "is_private": True,
        "num_changed": 0,
        "num_deleted": 0,
        "pull_request_url": None,
    }
    files = {".gitattributes", "README.md", "index.json", "items.parquet", "vectors.safetensors"}
    assert set(repo.commits[1].files) == {*files, "index.faiss"}
    assert set(repo.files) == files
    assert len(repo.commits) == 3
    lines = [
        json.loads(line)
        for line in _run(local_hub, tmp_path, LOAD, tmp_path / "queries", repo.commits[1].oid).splitlines()
    ]
    names = sorted(files - {".gitattributes", "README.md"})
    rows = [index.search(queries, 5, ["split=test"]).rows.tolist() for index in (exact, graph)]
    assert lines[0] == [repo.commits[2].oid, "exact", rows[0], names]
    assert lines[1] == [repo.commits[1].oid, "hnsw", rows[1], sorted([*names, "index.faiss"])]
    assert lines[2].startswith(
        "an index must be a folder or a data set of the Hub, got 'tester/index' and Rev"
    )


def _run(local_hub, tmp_path, script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=local_hub.environment(tmp_path / "home") | {"RADTOWER_DEFER_MODELS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "hf_local_test_token" not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def with_text(builder, tmp_path):
    features = builder.features(3)
    texts = ["No nodule.", "Dr. Miller called.", "On 2021-03-12 effusion."]
    items = make_items("abc", {"study_id": ["s1", "s2", ""], "report": texts})
    return SearchIndex.from_features(features, items, tmp_path / "text")


def test_text_goes_along_only_where_it_is_asked_for_looked_at_and_private(with_text, monkeypatch):
    monkeypatch.setattr(publish, "get_token", lambda: "token")
    with pytest.raises(ValueError, match="must hold no text of reports unless that is asked for") as error:
        with_text.push_to_hub("me/index")
    assert "Miller" not in str(error.value)
    with pytest.raises(ValueError, match="must stay private, got a public push"):
        with_text.push_to_hub("me/index", include_text=True, private=False)
    with pytest.raises(
        ValueError, match=r"must hold no match of the privacy check, got 2 .*--accept-phi 2\)"
    ) as error:
        with_text.push_to_hub("me/index", include_text=True)
    assert "Miller" not in str(error.value)
    refuse_risks(with_text.about, with_text.items, PushOptions(has_text=True, num_accepted_matches=2))


@pytest.mark.parametrize("column", ["item_id", "study_id"])
def test_ids_that_look_like_those_of_patients_stay_here(builder, tmp_path, column, monkeypatch):
    monkeypatch.setattr(publish, "get_token", lambda: "token")
    ids = {"item_id": ["a", "b", "c"], "study_id": ["s1", "s2", "s3"]}
    ids[column][1] = "ct_20210312_b"
    items = make_items(ids["item_id"], {"study_id": ids["study_id"]})
    index = SearchIndex.from_features(builder.features(3), items, tmp_path / "ids")
    with pytest.raises(ValueError, match="must not look like identifiers of patients, got 1 of 3") as error:
        index.push_to_hub("me/index")
    assert "20210312" not in str(error.value)
    refuse_risks(index.about, index.items, PushOptions(are_ids_public=True))


def test_other_columns_of_the_rows_are_searched_too(builder):
    index = builder.build(3, name="devices")
    items = index.items.assign(device=["a_b", "serial_number_X12345", None], size=[1234567, 2345678, 3456789])
    with pytest.raises(
        ValueError, match=r"must hold no match .* got 1 in 1 of \d+ texts \(1 device number\)"
    ):
        refuse_risks(index.about, items, PushOptions())
    refuse_risks(index.about, items, PushOptions(num_accepted_matches=1))


def test_without_a_token_nothing_begins(builder, monkeypatch):
    monkeypatch.setattr(publish, "get_token", lambda: None)
    items = make_items(["ct_20210312_b"])  # would be refused, too, but after the search of all ids
    index = SearchIndex.from_features(builder.features(1), items, builder.folder / "ids")
    with pytest.raises(PermissionError, match="a token of the Hub must be set"):
        index.push_to_hub("me/index")


def test_the_card_says_what_it_is_and_names_nobody(builder):
    index = builder.build(700, backend="ivf-pq", dataset="A cohort", is_phantom=True)
    card = index_card(index.about, index.items, "me/scans")
    recall = index.about.recall
    interval = f"({recall.ci_low:.3f}-{recall.ci_high:.3f}, 95 % interval over queries)"
    for told in (
        "one vector per scan, 700 of them, by `m`",
        "| data | A cohort |",
        "revision `abc`",
        "| hash of weights and configuration | `f0` |",
        "| hash of the image processor | `123` |",
        "| vectors | 8 numbers, float32, length 1 |",
        f"| {recall.value:.3f} {interval}; n=200:",
        "`study_id`, `split`, `Nodule`, `Pleural effusion`",
        "not included, only hashes",
        "phantoms, not patients",
        "Research use only. Not for diagnosis",
        'SearchIndex.from_pretrained("me/scans")',
        "viewer: false",
        "lie elsewhere",
    ):
        assert told in card, told
    assert "v17" not in card
    plain = builder.build(5, name="plain")
    other = index_card(
        plain.about.model_copy(
            update={"kind": "text", "model_hash": None, "processor_hash": None, "is_normalized": False}
        ).model_copy(update={"metric": "dot", "has_text": True, "model_revision": None}),
        plain.items[["item_id"]].assign(report="secret words"),
        "me/texts",
    )
    for told in (
        "one vector per report",
        "| data | not named |",
        "not known",
        "as the model gives them",
        "| similarity | dot product |",
        "| search | exact |",
        "access must be that of the reports",
    ):
        assert told in other, told
    for absent in ("recall@", "phantom", "image processor", "lie elsewhere", "secret", "revision `"):
        assert absent not in other, absent
