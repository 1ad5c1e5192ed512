"""``radtower index``: built from a model or from features, asked by text, scan, reports and features."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from radtower.data import publish
from radtower.evaluation.embedding import embed_reports, embed_scans
from radtower.evaluation.features import Features, FeatureSource, read_features, write_features
from radtower.evaluation.search.search_index import SearchIndex

REPORTS = [
    "no nodule",
    "small nodule",
    "There is effusion",
    "no effusion",
    "nodule present",
    "small effusion",
]


@pytest.fixture
def model(tiny_image_clip, tmp_path):
    tiny_image_clip.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{row}.png" for row in range(len(REPORTS))]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (18, 20), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def table(tmp_path, images):
    rows = range(len(REPORTS))
    frame = pd.DataFrame(
        {
            "study_id": [f"s{row}" for row in rows],
            "patient_id": [f"secret{row}" for row in rows],
            "image_path": [path.name for path in images],
            "report": REPORTS,
            "split": ["train", "test"] * 3,
            "Lung nodule": [0, 1, 0, 0, 1, 0],
        }
    )
    frame.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path / "manifest.csv"


def found(done):
    return [[hit["item_id"] for hit in query["hits"]] for query in json.loads(done.out)["queries"]]


def nearest(queries, gallery, k):
    similarity = queries.vectors.double() @ gallery.vectors.double().T
    return [
        [gallery.ids[row] for row in rows]
        for rows in similarity.argsort(dim=1, descending=True)[:, :k].tolist()
    ]


def test_text_finds_images(radtower, model, table, images, tmp_path):
    done = radtower("index", "build", model, table, "-o", tmp_path / "index", "--of", "images")
    assert done.code == 0, done.err
    assert "6 scans, 12 numbers each, cosine, exact, in" in done.out
    assert "findings to filter by: Lung nodule" in done.out
    scans, _ = embed_scans(model, images)
    gallery = Features(scans.vectors, [f"s{row}" for row in range(6)], scans.source)
    text, _ = embed_reports(model, [("text", "small  effusion")])
    (tmp_path / "text.txt").write_text("small effusion\n")
    for flags in (("--text", "small effusion"), ("--text-file", tmp_path / "text.txt")):
        done = radtower("index", "query", tmp_path / "index", "--model", model, *flags, "-k", 3, "--json")
        assert done.code == 0, done.err
        assert found(done) == nearest(text, gallery, 3)
    content = json.loads(done.out)
    assert content["note"] == "Research use only, not for diagnosis."
    assert (content["num_items"], content["num_matching"], content["backend"]) == (6, 6, "exact")
    hit = content["queries"][0]["hits"][0]
    assert list(hit) == ["rank", "item_id", "study_id", "split", "report_sha256", "score", "findings"]
    printed = radtower("index", "query", tmp_path / "index", "--model", model, "--text", "small effusion")
    assert "6 of 6 items match: these are all, not 10." in printed.err
    rows = [line.split("\u2502")[1:-1] for line in printed.out.splitlines() if line.startswith("\u2502")]
    assert [[cell.strip() for cell in row][:2] for row in rows] == [
        [str(rank), item] for rank, item in enumerate(nearest(text, gallery, 6)[0], start=1)
    ]
    assert [row[3].strip() for row in rows].count("Lung nodule") == 2
    assert "Research use only, not for diagnosis." in printed.out


def test_a_scan_finds_reports_and_reports_find_reports(radtower, model, table, images, tmp_path):
    done = radtower("index", "build", model, table, "-o", tmp_path / "index", "--of", "reports", "--json")
    assert done.code == 0, done.err
    about = json.loads(done.out)
    assert (about["kind"], about["count"], about["has_text"], about["failures"]) == ("text", 6, False, {})
    reports, _ = embed_reports(model, [(f"s{row}", text) for row, text in enumerate(REPORTS)])
    scans, _ = embed_scans(model, images[:2])
    ask = ("index", "query", tmp_path / "index", "--model", model, "-k", 4, "--json")
    assert found(radtower(*ask, "--scan", images[0], "--scan", images[1])) == nearest(scans, reports, 4)
    flags = ("--reports", table, "--limit", 2)
    assert found(radtower(*ask, *flags)) == nearest(
        Features(reports.vectors[:2], [], reports.source), reports, 4
    )
    others = found(radtower(*ask, *flags, "--leave-out", "study"))
    assert others == [
        [item for item in row if item != f"s{q}"][:4]
        for q, row in enumerate(nearest(Features(reports.vectors[:2], [], reports.source), reports, 5))
    ]
    stored = b"".join(path.read_bytes() for path in (tmp_path / "index").iterdir())
    for secret in ("effusion", "secret", str(tmp_path)):
        assert secret.encode() not in stored
    items = SearchIndex(tmp_path / "index").items.to_csv()
    assert not any(text in items for text in ("no effusion", "secret", str(tmp_path)))


def test_text_is_stored_and_shown_where_it_is_asked_for(radtower, model, table, tmp_path):
    flags = ("--of", "reports", "--with-text", "--split", "test", "--phantom")
    done = radtower("index", "build", model, table, "-o", tmp_path / "index", *flags)
    assert "3 reports, 12 numbers each" in done.out
    assert "holds the text of reports" in done.out
    done = radtower("index", "query", tmp_path / "index", "--model", model, "--text", "small nodule", "-k", 1)
    assert "these are all" not in done.err
    assert "small nodule" in done.out
    assert "\u2503 report" in done.out
    assert "phantoms" in done.out


def test_filters_are_exact(radtower, model, table, tmp_path):
    radtower("index", "build", model, table, "-o", tmp_path / "index", "--of", "images")
    ask = ("index", "query", tmp_path / "index", "--model", model, "--text", "nodule", "--json")
    done = radtower(*ask, "--filter", "finding=lung_nodule", "--filter", "split=test")
    assert found(done) == [["s1"]]
    assert json.loads(done.out)["num_matching"] == 1
    assert sorted(found(radtower(*ask, "--filter", "split=train"))[0]) == ["s0", "s2", "s4"]
    for wrong, message in (
        ("split=x", "at least one item, got 0 of 6"),
        ("cyst=1", "got 'cyst', which is 0"),
    ):
        done = radtower(*ask, "--filter", wrong)
        assert (done.code, done.out) == (2, "")
        assert message in done.err
    nowhere = ("--model", tmp_path / "nowhere", "--text", "nodule", "--filter", "split=x")
    done = radtower("index", "query", tmp_path / "index", *nowhere)
    assert "at least one item, got 0 of 6" in done.err  # before a model is loaded


def test_features_make_an_index_and_ask_one(radtower, model, table, tmp_path):
    assert radtower("embed", "images", model, table, "-o", tmp_path / "scans").code == 0
    done = radtower("index", "build", tmp_path / "scans", table, "-o", tmp_path / "index", "--split", "test")
    assert done.code == 0, done.err
    assert "3 scans" in done.out
    done = radtower("index", "query", tmp_path / "index", "--features", tmp_path / "scans", "-k", 2, "--json")
    assert done.code == 0, done.err
    features = read_features(tmp_path / "scans")
    gallery = Features(features.vectors[1::2], features.ids[1::2], features.source)
    assert found(done) == nearest(features, gallery, 2)
    done = radtower("index", "build", tmp_path / "scans", "-o", tmp_path / "plain")
    assert "findings to filter by: none" in done.out
    done = radtower("index", "build", tmp_path / "scans", "-o", tmp_path / "plain", "--of", "reports")
    assert (done.code, "--of must be images for these features, got reports" in done.err) == (2, True)


def test_another_model_of_the_same_name_is_refused(radtower, model, table, tiny_image_clip, tmp_path):
    radtower("index", "build", model, table, "-o", tmp_path / "index", "--of", "images")
    torch.nn.init.normal_(tiny_image_clip.text_projection.weight)
    tiny_image_clip.save_pretrained(tmp_path / "elsewhere" / "clip")
    other = ("--model", tmp_path / "elsewhere" / "clip", "--text", "nodule")
    done = radtower("index", "query", tmp_path / "index", *other)
    assert (done.code, done.out) == (2, "")
    assert "queries must be of the model that made the index, got differences: model_hash" in done.err


def test_what_cannot_be_read_is_listed(radtower, model, table, images, tmp_path):
    images[2].write_bytes(b"damaged")
    done = radtower("index", "build", model, table, "-o", tmp_path / "index", "--of", "images")
    assert done.code == 1
    assert "5 scans" in done.out
    assert "failed: s2: " in done.err
    ask = ("index", "query", tmp_path / "index", "--model", model, "--json")
    done = radtower(*ask, "--scan", images[2], "--scan", images[3], "-k", 1)
    assert (done.code, found(done)) == (1, [["s3"]])
    assert "failed: 2.png: " in done.err


def test_approximate_backends_say_how_good_they_are(radtower, tmp_path):
    vectors = torch.nn.functional.normalize(torch.randn(50, 6), dim=1)
    source = FeatureSource(
        kind="image", model_id="m", model_revision=None, processor_hash="p", is_normalized=True
    )
    write_features(Features(vectors, [f"v{row}" for row in range(50)], source), tmp_path / "f")
    flags = ("--backend", "hnsw", "--parameter", "m=8", "--parameter", "ef_search=20")
    done = radtower("index", "build", tmp_path / "f", "-o", tmp_path / "index", *flags)
    assert done.code == 0, done.err
    about = SearchIndex(tmp_path / "index").about
    recall = about.recall
    shown = f"recall@10 against exact search: {recall.value:.3f} ({recall.ci_low:.3f}-{recall.ci_high:.3f})"
    assert f"{shown}, n=50 queries: items of the index, themselves left out" in done.out
    assert "parameters: m 8, ef_construction 80, ef_search 20, seed 0" in done.out
    done = radtower("index", "build", tmp_path / "f", "-o", tmp_path / "index", "--parameter", "m:8")
    assert (done.code, "--parameter must be NAME=NUMBER, got 'm:8'" in done.err) == (2, True)
    few = Features(vectors[:9], [f"v{row}" for row in range(9)], source)
    write_features(few, tmp_path / "few")
    done = radtower("index", "build", tmp_path / "few", "-o", tmp_path / "few_index", "--backend", "hnsw")
    assert "recall was not measured: there are too few items" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "model", "-o", "OUT"), "a model must come with a manifest and --of images or reports"),
        (("build", "model", "m.csv", "-o", "OUT"), "a model must come with a manifest and --of"),
        (("build", "model", "-o", "USED"), "must be new, empty or an index, got 'used' with something else"),
        (("query", "x", "--model", "m"), "one of --text, --text-file, --scan, --reports, --features must be"),
        (("query", "x", "--model", "m", "--text", "a", "--scan", "b"), "got --text, --scan"),
        (("query", "x", "--text", "secret words"), "--model must be given unless --features is, got neither"),
        (("query", "x", "--model", "m", "--features", "f"), "--features is, got both"),
        (("query", "OUT", "--features", "f"), "an index must be a folder or a data set of the Hub, got "),
    ],
)
def test_what_cannot_be_asked_is_one_line(radtower, tmp_path, arguments, message):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    places = {"OUT": tmp_path / "nowhere", "USED": tmp_path / "used"}
    done = radtower("index", *(places.get(word, word) for word in arguments))
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "secret words" not in done.err


def test_a_push_says_what_it_did_and_begins_with_a_token(radtower, model, table, tmp_path, monkeypatch):
    radtower("index", "build", model, table, "-o", tmp_path / "index", "--of", "reports", "--with-text")
    monkeypatch.setattr(publish, "get_token", lambda: None)
    done = radtower("index", "push", tmp_path / "index", "me/index")
    assert (done.code, "a token of the Hub must be set" in done.err) == (2, True)
    monkeypatch.setattr(publish, "get_token", lambda: "token")
    done = radtower("index", "push", tmp_path / "index", "me/index")
    assert (done.code, "must hold no text of reports unless" in done.err) == (2, True)
    done = radtower("index", "push", tmp_path / "index", "me/index", "--include-text", "--public")
    assert (done.code, "must stay private" in done.err) == (2, True)
    done = radtower("index", "push", tmp_path / "index", "me/index", "--include-text", "--accept-phi", 3)
    assert (done.code, "must hold exactly 3 matches of" in done.err) == (2, True)
