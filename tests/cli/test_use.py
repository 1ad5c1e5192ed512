import json

import pytest
import torch

from radtower.evaluation.embedding import embed_reports
from radtower.evaluation.features import read_features
from radtower.labeling.findings import load_findings
from radtower.modeling.modeling_medclip import MedCLIPModel


def test_zero_shot_scores_every_finding_of_one_scan(radtower, dual_tower, scans):
    done = radtower("zero-shot", dual_tower, scans[0], "--json")
    content = json.loads(done.out)
    findings = load_findings("ct_rate_18").findings
    assert list(content["scores"]) == [finding.key for finding in findings]
    model = MedCLIPModel.from_pretrained(dual_tower).eval()
    expected = model.zero_shot(scans[0], [finding.prompts[0] for finding in findings])[0].tolist()
    assert list(content["scores"].values()) == pytest.approx(expected, abs=1e-6)
    assert content["note"] == "Research use only, not for diagnosis."
    table = radtower("zero-shot", dual_tower, scans[0])
    assert table.code == 0
    rows = [line for line in table.out.splitlines() if any(finding.name in line for finding in findings)]
    shown = [float(line.split()[-2]) for line in rows]
    assert shown == pytest.approx(sorted(expected, reverse=True), abs=6e-4)
    assert "not for diagnosis" in table.out


def test_embedded_scans_read_back_and_the_bad_one_is_listed(radtower, dual_tower, scans, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"damaged")
    done = radtower("embed", "images", dual_tower, *scans, bad, "-o", tmp_path / "features")
    assert done.code == 1
    assert "2 of 3 scans, 12 numbers each" in done.out
    assert "failed: bad.nii.gz: " in done.err
    features = read_features(tmp_path / "features")
    assert features.ids == [scan.name for scan in scans]
    expected = MedCLIPModel.from_pretrained(dual_tower).eval().encode_image(list(scans))
    torch.testing.assert_close(features.vectors, expected)


def test_scans_of_a_manifest_have_its_ids(radtower, dual_tower, manifest, tmp_path):
    done = radtower("embed", "images", dual_tower, manifest, "--split", "train", "-o", tmp_path / "features")
    assert done.code == 1
    assert "2 of 3 scans, 12 numbers each" in done.out
    assert "failed: s2: " in done.err
    assert read_features(tmp_path / "features").ids == ["s1", "s3"]


def test_scans_need_no_reports(radtower, dual_tower, manifest_without_reports, tmp_path):
    done = radtower("embed", "images", dual_tower, manifest_without_reports, "-o", tmp_path / "features")
    assert "2 of 3 scans, 12 numbers each" in done.out


def test_a_split_or_cache_of_no_manifest_is_refused(radtower, dual_tower, scans, tmp_path):
    for flag in ("--split", "--cache"):
        done = radtower("embed", "images", dual_tower, *scans, flag, "train", "-o", tmp_path / "features")
        assert done.code == 2
        assert "--split and --cache must come with a manifest, got 2 scans" in done.err


def test_embedded_texts_read_back(radtower, dual_tower, manifest, tmp_path):
    done = radtower("embed", "texts", dual_tower, manifest, "-o", tmp_path / "features", "--limit", 2)
    assert done.code == 0
    assert "2 of 2 reports, 12 numbers each" in done.out
    features = read_features(tmp_path / "features")
    expected, _ = embed_reports(dual_tower, [("s1", "There is no nodule."), ("s2", "small effusion")])
    assert features.ids == ["s1", "s2"]
    torch.testing.assert_close(features.vectors, expected.vectors)
    assert features.source == expected.source


def test_an_empty_report_is_listed_and_the_others_are_embedded(radtower, dual_tower, tmp_path):
    table = tmp_path / "reports.csv"
    table.write_text("study_id,report\ns1,no nodule\ns2,  \ns3,effusion\n")
    done = radtower("embed", "texts", dual_tower, table, "-o", tmp_path / "features")
    assert done.code == 1
    assert "2 of 3 reports, 12 numbers each" in done.out
    assert "failed: s2: the report is empty" in done.err
    assert read_features(tmp_path / "features").ids == ["s1", "s3"]


def test_a_model_without_the_tower_is_refused(radtower, labeler, scans, tmp_path):
    done = radtower("embed", "images", labeler, scans[0], "-o", tmp_path / "features")
    assert done.code == 2
    assert "must have an image tower, got LLMBiEncoder" in done.err


def test_zero_shot_refuses_a_single_tower(radtower, labeler, scans):
    done = radtower("zero-shot", labeler, scans[0])
    assert done.code == 2
    assert "model must be a dual tower, got LLMBiEncoder in" in done.err
