from radtower.data.streams.stream_labels import StreamLabels
from radtower.data.targets import TargetPolicy
from radtower.labeling.findings import Status
from radtower.labeling.label_table import LabelRow, write_labels
from radtower.processing.report_text import report_sha256


def _row(report, nodule, effusion):
    keys = ("nodule", "effusion")
    return LabelRow(
        report_id=report,
        report_sha256=report_sha256(report),
        status=dict(zip(keys, (nodule, effusion), strict=True)),
        score=dict.fromkeys(keys),
        evidence=dict.fromkeys(keys),
        labeler="test",
        model_id="m",
        prompt_version=None,
        findings_set="pair",
    )


def test_reports_have_their_targets_and_unknown_ones_are_masked(tmp_path):
    rows = [
        _row("A nodule.", Status.PRESENT, Status.UNCERTAIN),
        _row("Clear.", Status.ABSENT, Status.NOT_MENTIONED),
    ]
    write_labels(rows, tmp_path / "labels.parquet")
    labels = StreamLabels(tmp_path / "labels.parquet", TargetPolicy(uncertain=0.5, not_mentioned=None))
    assert labels.keys == ("nodule", "effusion")
    assert [(labels(text)[0].tolist(), labels(text)[1]) for text in ("A nodule.", "Clear.")] == [
        ([1.0, 0.5], None),
        ([0.0, -100.0], None),
    ]
    targets, remark = labels("Never labeled.")
    assert targets.tolist() == [-100.0, -100.0]
    assert remark == "its report is not in the label table"
