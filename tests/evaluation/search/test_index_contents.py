"""What goes into an index: scans or reports of a table, in the order of their vectors."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from radtower.evaluation.embedding import embed_reports, embed_scans
from radtower.evaluation.features import Features
from radtower.evaluation.search.index_contents import (
    TableOptions,
    embedded_before,
    reports_of_table,
    scans_of_manifest,
)
from radtower.evaluation.search.items import make_items
from radtower.labeling.label_table import LabelRow, write_labels
from radtower.processing.report_text import report_sha256

REPORTS = ["no  nodule", "small nodule", "There is effusion", "", "no nodule"]


@pytest.fixture
def model(tiny_image_clip, tmp_path):
    tiny_image_clip.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def manifest(tmp_path):
    rng = np.random.default_rng(0)
    for row in range(5):
        Image.fromarray(rng.integers(0, 256, (18, 20), dtype=np.uint8)).save(tmp_path / f"{row}.png")
    (tmp_path / "1.png").write_bytes(b"damaged")
    frame = pd.DataFrame(
        {
            "volume_id": [f"v{row}" for row in range(5)],
            "study_id": ["s0", "s1", "s2", "s3", "s0"],
            "patient_id": ["secret0", "secret1", "secret2", "secret3", "secret0"],
            "image_path": [f"{row}.png" for row in range(5)],
            "report": ["no  nodule", *REPORTS[1:4], "no  nodule"],
            "split": ["test", "test", "train", "train", "test"],
            "Nodule": [0, 1, "", 0, 0],
            "effusion": ["absent", "uncertain", "present", "not_mentioned", "absent"],
            "age": [60, 61, 62, 63, 60],
        }
    )
    frame.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path / "manifest.csv"


def test_scans_have_the_rows_of_their_manifest(model, manifest, tmp_path):
    contents = scans_of_manifest(model, manifest)
    assert contents.features.ids == ["v0", "v2", "v3", "v4"]
    assert list(contents.failures) == ["v1"]
    direct, _ = embed_scans(model, [tmp_path / f"{row}.png" for row in (0, 2, 3, 4)])
    torch.testing.assert_close(contents.features.vectors, direct.vectors)
    items = contents.items
    assert list(items) == ["item_id", "study_id", "split", "report_sha256", "Nodule", "effusion"]
    assert items["item_id"].tolist() == contents.features.ids
    assert items["study_id"].tolist() == ["s0", "s2", "s3", "s0"]
    assert items["split"].tolist() == ["test", "train", "train", "test"]
    assert items["Nodule"].tolist() == [0, pd.NA, 0, 0]
    assert items["effusion"].tolist() == [0, 1, 0, 0]
    assert items["report_sha256"].isna().tolist() == [False, False, True, False]
    assert items["report_sha256"][0] == items["report_sha256"][3]
    assert "secret" not in items.to_csv()
    assert str(tmp_path) not in items.to_csv()


def test_a_split_and_the_text_where_they_are_asked_for(model, manifest):
    contents = scans_of_manifest(model, manifest, TableOptions(split="train", with_text=True))
    assert contents.items["item_id"].tolist() == ["v2", "v3"]
    assert contents.items["report"].tolist() == ["There is effusion", None]


def test_a_manifest_of_scans_needs_reports_only_for_what_is_made_of_them(model, manifest, tmp_path):
    frame = pd.read_csv(manifest).drop(columns="report")
    frame.to_csv(manifest, index=False)
    contents = scans_of_manifest(model, manifest)
    assert contents.items["report_sha256"].isna().all()
    again = embedded_before(contents.features, manifest, TableOptions())
    assert again.items["report_sha256"].isna().all()
    for options in (TableOptions(with_text=True), TableOptions(labels=tmp_path / "labels.parquet")):
        with pytest.raises(ValueError, match=r"and report, got no \['report \(or findings"):
            scans_of_manifest(model, manifest, options)


def test_reports_are_one_per_study(model, manifest):
    contents = reports_of_table(model, manifest)
    assert contents.features.ids == ["s0", "s1", "s2"]
    assert contents.failures == {"s3": "the report is empty"}
    direct, _ = embed_reports(model, zip("abc", REPORTS[:3], strict=True))
    torch.testing.assert_close(contents.features.vectors, direct.vectors)
    assert contents.items["study_id"].tolist() == ["s0", "s1", "s2"]
    assert contents.items["effusion"].tolist() == [0, pd.NA, 1]
    assert "report" not in contents.items
    train = reports_of_table(model, manifest, TableOptions(split="train", with_text=True))
    assert train.items["report"].tolist() == ["There is effusion"]


def test_features_bring_their_rows_along(model, manifest):
    scans, reports = scans_of_manifest(model, manifest), reports_of_table(model, manifest)
    for made in (scans, reports):
        again = embedded_before(made.features, manifest)
        pd.testing.assert_frame_equal(again.items, made.items)
        test = embedded_before(made.features, manifest, TableOptions(split="test"))
        is_test = (made.items["split"] == "test").to_numpy()
        assert torch.equal(test.features.vectors, made.features.vectors[torch.tensor(is_test)])
        assert test.items["item_id"].tolist() == made.items["item_id"][is_test].tolist()
    alone = embedded_before(scans.features)
    pd.testing.assert_frame_equal(alone.items, make_items(["v0", "v2", "v3", "v4"]))


def test_features_that_do_not_fit_are_refused(model, manifest):
    features = scans_of_manifest(model, manifest).features
    with pytest.raises(ValueError, match="must come with a table, got none"):
        embedded_before(features, options=TableOptions(split="test"))
    with pytest.raises(ValueError, match="must have the volume ids of the table, got 1 of 4 others"):
        embedded_before(Features(features.vectors, ["v0", "v2", "x", "v4"], features.source), manifest)
    texts = Features(features.vectors, features.ids, replace(features.source, kind="text"))
    with pytest.raises(ValueError, match="must have the study ids of the table, got 4 of 4 others"):
        embedded_before(texts, manifest)
    with pytest.raises(ValueError, match="split must be one of the features, got 'validation' with none"):
        embedded_before(features, manifest, TableOptions(split="validation"))


def test_findings_may_come_from_a_label_table(model, manifest, tmp_path):
    keys, table = ("lung_nodule", "pleural_effusion"), tmp_path / "labels.parquet"
    rows = [
        LabelRow(
            report_id=text,
            report_sha256=report_sha256(text),
            status=dict(zip(keys, statuses, strict=True)),
            score=dict.fromkeys(keys),
            evidence=dict.fromkeys(keys),
            labeler="endpoint",
            model_id="some/model",
            prompt_version="v1",
            findings_set="ct_rate_18[lung_nodule,pleural_effusion]",
        )
        for text, statuses in (
            ("no nodule", ("absent", "absent")),
            ("small nodule", ("present", "uncertain")),
        )
    ]
    write_labels(rows, table)
    frame = pd.read_csv(manifest).query("study_id in ('s0', 's1')")
    frame.to_csv(manifest, index=False)
    contents = scans_of_manifest(model, manifest, TableOptions(labels=table))
    assert list(contents.items)[4:] == ["lung_nodule", "pleural_effusion"]
    assert contents.items["lung_nodule"].tolist() == [0, 0]
    reports = reports_of_table(model, manifest, TableOptions(labels=table))
    assert reports.items["lung_nodule"].tolist() == [0, 1]
    assert reports.items["pleural_effusion"].tolist() == [0, pd.NA]


def test_an_encoder_that_depends_on_the_batch_makes_no_index(tiny_image_clip, manifest, tmp_path):
    tower = tiny_image_clip
    tower.text_model.tokenizer = tower.processor.tokenizer
    tower.text_model.set_prompt("Describe", "small nodule")
    tower.text_model.config.prompt_padding = "legacy_middle"
    tower.save_pretrained(tmp_path / "legacy")
    with pytest.raises(ValueError, match="must not depend on their batch"):
        reports_of_table(tmp_path / "legacy", manifest)
    assert json.loads((tmp_path / "legacy" / "config.json").read_text())["model_type"] == "medclip"
    assert len(scans_of_manifest(tmp_path / "legacy", manifest).items) == 4
