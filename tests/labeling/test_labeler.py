from collections.abc import Iterable, Iterator

import pytest

from radtower.labeling.findings import Status, load_findings
from radtower.labeling.label_table import read_labels, write_labels
from radtower.labeling.labeler import label_reports, sha256_by_report_id
from radtower.labeling.report_labels import ReportLabels, label_in_batches

FINDINGS = load_findings("ct_rate_18").subset(["pleural_effusion", "emphysema"])


class WordBackend:
    """Present when the report names the finding; raises on the word ``boom``."""

    name = "words"
    model_id = "words-1"
    prompt_version = None

    settings = {}

    def __init__(self, keys: tuple[str, ...] = FINDINGS.keys, batch_size: int = 32) -> None:
        self.keys = keys
        self.batch_size = batch_size
        self.calls: list[list[str]] = []

    def label(self, reports: Iterable[str]) -> Iterator[tuple[int, ReportLabels]]:
        return label_in_batches(reports, self.label_batch, self.keys, self.batch_size)

    def label_batch(self, reports: list[str]) -> list[ReportLabels]:
        self.calls.append(reports)
        if any("boom" in report for report in reports):
            raise RuntimeError(f"cannot read {reports}")
        return [self._label(report) for report in reports]

    def _label(self, report: str) -> ReportLabels:
        found = {key: key.split("_")[-1] in report.lower() for key in self.keys}
        return ReportLabels(
            status={key: Status.PRESENT if hit else Status.NOT_MENTIONED for key, hit in found.items()},
            score={key: 0.9 if hit else 0.2 for key, hit in found.items()},
            evidence=dict.fromkeys(self.keys),
            tokens_in=len(report.split()),
            num_dropped_evidence=1,
        )


def test_each_unique_text_is_labeled_once_under_its_first_id():
    backend = WordBackend(batch_size=2)
    reports = [("a", "Emphysema."), ("b", "Effusion."), ("c", "  Emphysema.\n"), ("d", "Clear.")]
    rows = label_reports(reports, backend, FINDINGS)
    assert [row.report_id for row in rows] == ["a", "b", "d"]
    assert backend.calls == [["Emphysema.", "Effusion."], ["Clear."]]
    assert rows[0].status == {"pleural_effusion": Status.NOT_MENTIONED, "emphysema": Status.PRESENT}
    assert rows[1].score == {"pleural_effusion": 0.9, "emphysema": 0.2}
    assert (rows[0].labeler, rows[0].model_id, rows[0].prompt_version) == ("words", "words-1", None)
    assert rows[0].findings_set == "ct_rate_18[pleural_effusion,emphysema]"
    assert (rows[0].tokens_in, rows[0].num_dropped_evidence) == (1, 1)


def test_every_id_leads_to_its_row():
    reports = [("a", "Emphysema."), ("b", "  Emphysema.\n"), ("c", "Clear.")]
    rows = label_reports(reports, WordBackend(), FINDINGS)
    row_of = {row.report_sha256: row.report_id for row in rows}
    hashes = sha256_by_report_id(reports)
    assert [row_of[hashes[report_id]] for report_id in "abc"] == ["a", "a", "c"]


def test_one_failing_report_costs_only_itself():
    backend = WordBackend()
    reports = [("a", "Emphysema."), ("b", "boom John Doe"), ("c", "Effusion.")]
    rows = label_reports(reports, backend, FINDINGS)
    assert [row.error for row in rows] == [None, "exception:RuntimeError", None]
    assert rows[1].status == {"pleural_effusion": None, "emphysema": None}
    assert rows[2].status["pleural_effusion"] is Status.PRESENT
    assert [len(call) for call in backend.calls] == [3, 1, 1, 1]


def test_an_empty_report_is_a_failure_that_costs_no_call():
    backend = WordBackend()
    rows = label_reports([("a", " \n"), ("b", "Effusion."), ("c", "")], backend, FINDINGS)
    assert [(row.report_id, row.error) for row in rows] == [("a", "empty_report"), ("b", None)]
    assert rows[1].status["pleural_effusion"] is Status.PRESENT
    assert backend.calls == [["Effusion."]]
    assert label_reports([("a", "")], WordBackend(), FINDINGS)[0].error == "empty_report"


def test_progress_counts_unique_reports():
    seen: list[int] = []
    reports = [(str(i), f"Report {i % 4}.") for i in range(8)]
    label_reports(reports, WordBackend(), FINDINGS, on_progress=seen.append)
    assert seen == [1, 2, 3, 4]


def test_rows_can_be_written_and_read(tmp_path):
    rows = label_reports([("a", "Emphysema."), ("b", "boom")], WordBackend(), FINDINGS)
    write_labels(rows, tmp_path / "labels.parquet")
    table = read_labels(tmp_path / "labels.parquet")
    assert table.status_frame.loc["a"].tolist() == ["not_mentioned", "present"]
    assert table.failures.to_dict() == {"b": "exception:RuntimeError"}


def test_no_reports_give_no_rows():
    assert label_reports([], WordBackend(), FINDINGS) == []


def test_a_repeated_id_is_refused_without_naming_it():
    reports = [("secret", "A."), ("b", "B."), ("secret", "C.")]
    with pytest.raises(ValueError, match="a second time at position 2") as caught:
        label_reports(reports, WordBackend(), FINDINGS)
    assert "secret" not in str(caught.value)


def test_a_backend_that_loses_a_report_is_refused():
    class Losing(WordBackend):
        def label(self, reports):
            return list(super().label(reports))[1:]

    with pytest.raises(ValueError, match=r"got 1 answers for 2\. Fix 'words'"):
        label_reports([("a", "A."), ("b", "B.")], Losing(), FINDINGS)


def test_a_backend_with_other_findings_is_refused():
    with pytest.raises(ValueError, match=r"got \['emphysema', 'pleural_effusion'\]"):
        label_reports([("a", "A.")], WordBackend(FINDINGS.keys[::-1]), FINDINGS)
