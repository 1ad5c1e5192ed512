import numpy as np
import pandas as pd
import pytest
import torch

from radtower.data.datasets import StudyDataset, study_targets
from radtower.data.targets import TargetPolicy
from radtower.labeling.findings import Status
from radtower.labeling.label_table import LabelRow, write_labels
from radtower.processing.report_text import report_sha256

STATUSES = {
    "Effusion, no nodule.": (Status.PRESENT, Status.ABSENT),
    "Possible nodule.": (Status.NOT_MENTIONED, Status.UNCERTAIN),
    "Unreadable.": (None, None),
}


@pytest.fixture
def labels(tmp_path):
    rows = []
    for number, (text, statuses) in enumerate(STATUSES.items()):
        keys = ("effusion", "nodule")
        rows.append(
            LabelRow(
                report_id=f"r{number}",
                report_sha256=report_sha256(text),
                status=dict(zip(keys, statuses, strict=True)),
                score=dict.fromkeys(keys),
                evidence=dict.fromkeys(keys),
                labeler="test",
                model_id="m",
                prompt_version=None,
                findings_set="pair",
                error=None if statuses[0] else "timeout",
            )
        )
    write_labels(rows, tmp_path / "labels.parquet")
    return tmp_path / "labels.parquet"


def _studies(*reports):
    return pd.DataFrame({"report": list(reports)})


def test_targets_follow_the_policy_and_the_order_of_the_studies(labels):
    studies = _studies("Possible nodule.", "Effusion,  no nodule.", "Unreadable.", "Possible nodule.")
    targets = study_targets(studies, labels, TargetPolicy())
    assert targets.keys == ("effusion", "nodule")
    np.testing.assert_array_equal(targets.values, [[0, -100], [1, 0], [-100, -100], [0, -100]])
    assert targets.values.dtype == np.float32
    soft = study_targets(studies, labels, TargetPolicy(uncertain=0.25, not_mentioned=None))
    np.testing.assert_array_equal(soft.values, [[-100, 0.25], [1, 0], [-100, -100], [-100, 0.25]])


def test_a_report_that_was_never_labeled_is_refused_by_its_hash(labels):
    text = "A report of Mrs. Doe."
    with pytest.raises(KeyError, match=f"got 1 that are not, first {report_sha256(text)[:12]}") as error:
        study_targets(_studies("Possible nodule.", text), labels, TargetPolicy())
    assert "Doe" not in str(error.value)


def test_a_sample_has_what_was_asked_for_and_no_more():
    scans = {"a": torch.full((1, 2, 2, 2), 0.25), "b": torch.full((1, 2, 2, 2), -0.5)}
    targets = np.array([[1.0, -100.0], [0.25, 0.0]])
    features = torch.tensor([[3.0], [5.0]])
    dataset = StudyDataset(["b", "a"], scans.__getitem__, targets, features)
    assert len(dataset) == 2
    assert torch.equal(dataset[0]["pixel_values"], scans["b"])
    assert dataset[0]["labels"].tolist() == [1, -100]
    assert dataset[0]["labels"].dtype == torch.float32
    assert dataset[1]["labels"].tolist() == [0.25, 0]
    assert dataset[1]["text_features"].tolist() == [5]
    assert list(StudyDataset(["a"], scans.__getitem__)[0]) == ["pixel_values"]


@pytest.mark.parametrize(
    ("name", "table"), [("targets", np.zeros((3, 1))), ("text_features", torch.zeros(1, 4))]
)
def test_a_table_with_another_number_of_rows_is_refused(name, table):
    with pytest.raises(ValueError, match=f"{name} must have one row per study, got {len(table)} for 2"):
        StudyDataset(["a", "b"], {}.__getitem__, **{name: table})
