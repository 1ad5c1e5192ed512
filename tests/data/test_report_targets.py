"""Labels of reports by volume: looked up by hash, by one rule, with their source."""

import numpy as np
import pandas as pd
import pytest

from radtower.data.manifest import Manifest
from radtower.data.report_targets import ReportTargets, targets_from_labels, targets_from_manifest
from radtower.data.targets import TargetPolicy
from radtower.labeling.label_table import LabelRow, stream_labels
from radtower.processing.report_text import report_sha256

KEYS = ("lung_nodule", "pleural_effusion")
STATUSES = {
    "A nodule.": ("present", "absent"),
    "Perhaps fluid.": ("not_mentioned", "uncertain"),
    "Unreadable.": (None, None),
}


@pytest.fixture
def labels(tmp_path):
    rows = [
        LabelRow(
            report_id=text[:3],
            report_sha256=report_sha256(text),
            status=dict(zip(KEYS, statuses, strict=True)),
            score=dict.fromkeys(KEYS),
            evidence=dict.fromkeys(KEYS),
            labeler="encoder",
            model_id="/home/somebody/labeler",
            prompt_version="v2",
            findings_set="ct_rate_18[lung_nodule,pleural_effusion]",
            error="no answer" if None in statuses else None,
        )
        for text, statuses in STATUSES.items()
    ]
    stream_labels(rows, tmp_path / "labels.parquet", KEYS, {"labeler": "encoder", "prompt": "v2"})
    return tmp_path / "labels.parquet"


REPORTS = ["Perhaps  fluid.", "A nodule.", "Unreadable.", "Never seen.", "A nodule."]


def test_labels_are_found_by_the_text_and_masked_by_the_rule(labels):
    found = targets_from_labels(REPORTS, labels)
    assert found.values.tolist() == [[0, -100], [1, 0], [-100, -100], [-100, -100], [1, 0]]
    assert found.is_labeled.tolist() == [True, True, False, False, True]
    assert found.keys == KEYS
    assert found.class_set == "ct_rate_18[lung_nodule,pleural_effusion]"
    some = found.at([1, 0])
    assert (some.values.tolist(), some.is_labeled.tolist()) == ([[1, 0], [0, -100]], [True, True])
    assert some.source == found.source


def test_the_source_names_labeler_and_rule_and_no_path(labels):
    source = targets_from_labels(REPORTS, labels).source
    who, rule = source.split("; ")
    assert rule == "uncertain masked, not mentioned 0"
    start, _, generation = who.rpartition(" ")
    assert start == "labels of the reports by encoder labeler, prompt v2, generation"
    assert len(generation) == 12
    policy = TargetPolicy(uncertain=1.0, not_mentioned=None)
    other = targets_from_labels(REPORTS, labels, policy)
    assert other.source.endswith("; uncertain 1, not mentioned masked")
    assert other.values[0].tolist() == [-100, 1]


def test_labels_between_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels of reports must be 0, 1 or -100, got \[0.5\]"):
        targets_from_labels(REPORTS, labels, TargetPolicy(uncertain=0.5))
    with pytest.raises(ValueError, match="must be 0, 1 or -100"):
        ReportTargets(KEYS, np.array([[0.2, 1.0]]), np.array([True]), "s", "c")


def test_columns_of_the_manifest_are_labels_too(tmp_path):
    findings = tmp_path / "two.yaml"
    findings.write_text("name: two\nbase: ct_rate_18\nkeys: [lung_nodule, pleural_effusion]\n")
    frame = pd.DataFrame({"lung_nodule": ["1", None, "0"], "pleural_effusion": ["0", None, "1"]})
    found = targets_from_manifest(Manifest(frame), findings)
    assert found.values.tolist() == [[1, 0], [-100, -100], [0, 1]]
    assert found.is_labeled.tolist() == [True, False, True]
    assert found.source == "columns of the manifest; uncertain masked, not mentioned 0"
    assert (found.class_set, found.keys) == ("two", KEYS)
