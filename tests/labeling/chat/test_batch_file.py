import json

import pytest

from radtower.labeling.answers.generation import Generation
from radtower.labeling.answers.ledger import open_ledger
from radtower.labeling.chat.batch_file import BatchResults, custom_id, write_batch_file
from radtower.labeling.chat.budget import Price
from radtower.labeling.endpoint import EndpointLabeler
from radtower.labeling.findings import Status, load_findings
from radtower.processing.report_text import report_sha256

FINDINGS = load_findings("ct_rate_18").subset(["pleural_effusion", "emphysema"])
LABELER = EndpointLabeler(
    "http://127.0.0.1:1/v1",
    "m",
    FINDINGS,
    price=Price(model="m", usd_per_million_in=2.0, usd_per_million_out=10.0, batch_factor=0.5),
)
TEXTS = ["Small pleural effusion.", "No emphysema.", "Normal."]
REPORTS = [(report_sha256(text), text) for text in TEXTS]
GOOD = json.dumps(
    {
        "pleural_effusion": {"status": "present", "evidence": "Small pleural effusion"},
        "emphysema": {"status": "not_mentioned", "evidence": ""},
    }
)


def result(report, content=GOOD, status=200, generation="abc", **fields):
    completion = {
        "choices": [{"message": {"content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
    }
    line = {"id": "x", "custom_id": custom_id(generation, report_sha256(report)), "error": None}
    return line | {"response": {"status_code": status, "request_id": "y", "body": completion}} | fields


def write_lines(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_line_is_the_request_that_would_be_sent_online(tmp_path):
    written = write_batch_file(iter(REPORTS), tmp_path / "requests.jsonl", LABELER, "abc")
    assert (written.paths, written.num_requests) == ((tmp_path / "requests.jsonl",), 3)
    first, *_ = map(json.loads, (tmp_path / "requests.jsonl").read_text().splitlines())
    assert (first["method"], first["url"]) == ("POST", "/v1/chat/completions")
    assert first["body"] == json.loads(LABELER.questions.ask(TEXTS[0], is_constrained=True))
    assert first["custom_id"] == custom_id("abc", REPORTS[0][0])


def test_names_are_64_characters_and_tell_generation_and_report_apart():
    assert len(custom_id("0123456789ab", REPORTS[0][0])) == 64
    assert len({custom_id(g, sha) for g in ("0123456789ab", "0123456789ac") for sha, _ in REPORTS}) == 6


def test_files_are_split_at_the_limits_of_the_service(tmp_path):
    by_count = write_batch_file(REPORTS, tmp_path / "a.jsonl", LABELER, "abc", max_requests=2)
    assert [path.name for path in by_count.paths] == ["a.jsonl", "a.2.jsonl"]
    assert [len(path.read_text().splitlines()) for path in by_count.paths] == [2, 1]
    size = len((tmp_path / "a.jsonl").read_bytes())
    by_size = write_batch_file(REPORTS, tmp_path / "b.jsonl", LABELER, "abc", max_bytes=size)
    assert [len(path.read_text().splitlines()) for path in by_size.paths] == [2, 1]
    assert write_batch_file([], tmp_path / "c.jsonl", LABELER, "abc").paths == ()


def test_a_file_that_exists_is_not_written_over(tmp_path):
    write_lines(tmp_path / "a.2.jsonl")
    with pytest.raises(FileExistsError, match=r"a\.2\.jsonl, which exists"):
        write_batch_file(REPORTS, tmp_path / "a.jsonl", LABELER, "abc", max_requests=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.2.jsonl"]


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path):
    seen = []

    def reports():
        for report in REPORTS:
            seen.append(sorted(path.name for path in tmp_path.iterdir()))
            yield report

    write_batch_file(reports(), tmp_path / "a.jsonl", LABELER, "abc", max_requests=1)
    assert seen == [[], ["a.jsonl.part"], ["a.2.jsonl.part", "a.jsonl.part"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.2.jsonl", "a.3.jsonl", "a.jsonl"]


def test_what_was_not_written_to_the_end_is_neither_kept_nor_remembered(tmp_path):
    def broken():
        yield REPORTS[0]
        raise OSError("the table is gone")

    with open_ledger(tmp_path / "labels.parquet") as ledger:
        ledger.use(Generation({"model_id": "m"}))
        memory = ledger.batches("abc")
        with pytest.raises(OSError, match="the table is gone"):
            write_batch_file(broken(), tmp_path / "a.jsonl", LABELER, "abc", memory=memory)
        assert [path.name for path in tmp_path.iterdir()] == ["labels.parquet.ledger"]
        assert memory.file_of(REPORTS[0][0]) is None
        written = write_batch_file(REPORTS[1:], tmp_path / "a.jsonl", LABELER, "abc", memory=memory)
        assert (written.num_requests, written.num_in_earlier) == (2, {})
    with open_ledger(tmp_path / "labels.parquet") as ledger:
        memory = ledger.batches("abc")
        files = [memory.file_of(sha) for sha, _ in REPORTS]
        assert files == [None, str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl")]
        assert ledger.batches("other").file_of(REPORTS[1][0]) is None


def test_results_in_any_order_and_several_files_become_labels_at_the_price_of_a_batch(tmp_path):
    paths = [
        write_lines(tmp_path / "1.jsonl", result(TEXTS[1])),
        write_lines(tmp_path / "2.jsonl", result(TEXTS[0])),
    ]
    results = BatchResults(paths, "abc")
    assert len(results) == 2
    results.check_reports(sha for sha, _ in REPORTS)
    answers = dict(results.labels(iter(REPORTS), LABELER))
    assert list(answers) == [REPORTS[0][0], REPORTS[1][0]]
    first, second = answers.values()
    assert first.status == {"pleural_effusion": Status.PRESENT, "emphysema": Status.NOT_MENTIONED}
    assert first.evidence["pleural_effusion"] == "Small pleural effusion"
    assert (first.tokens_in, first.tokens_out) == (1000, 100)
    assert first.cost_usd == pytest.approx(0.5 * (2000 + 1000) / 1e6)
    # The same reply about another report: its quote is not there.
    assert (second.evidence["pleural_effusion"], second.num_dropped_evidence) == (None, 1)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (result(TEXTS[0], status=500), "batch:http_500"),
        (
            result(TEXTS[0], response=None, error={"code": "batch_expired", "message": "Secret"}),
            "batch:batch_expired",
        ),
        (result(TEXTS[0], response=None, error={"code": "Secret Person"}), "batch:error"),
        (result(TEXTS[0], response=None), "batch:error"),
        (result(TEXTS[0], response={"status_code": 200, "body": {"x": 1}}), "batch:not_a_completion"),
        (result(TEXTS[0], content="present"), "batch:not_json"),
    ],
)
def test_what_failed_has_a_reason_that_is_asked_again(tmp_path, line, error):
    results = BatchResults([write_lines(tmp_path / "r.jsonl", line)], "abc")
    ((_, labels),) = results.labels(REPORTS, LABELER)
    assert labels.error == error
    assert labels.status == {"pleural_effusion": None, "emphysema": None}
    assert labels.tokens_in == (1000 if error == "batch:not_json" else None)


@pytest.mark.parametrize(
    "line", [result("Another report."), result(TEXTS[0], generation="older"), result(TEXTS[0], custom_id="1")]
)
def test_a_result_of_another_report_or_generation_is_refused(tmp_path, line):
    results = BatchResults([write_lines(tmp_path / "r.jsonl", result(TEXTS[1]), line)], "abc")
    with pytest.raises(ValueError, match=f"got 1 of 2 that are not, first {line['custom_id']}"):
        results.check_reports(sha for sha, _ in REPORTS)


def test_two_results_of_one_request_are_refused(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", result(TEXTS[0]))
    with pytest.raises(ValueError, match="got two for abc-"):
        BatchResults([path, path], "abc")


@pytest.mark.parametrize("line", ["{}", "no", '{"custom_id": 1}', "[]"])
def test_a_line_that_is_no_result_is_refused_with_its_place(tmp_path, line):
    path = write_lines(tmp_path / "r.jsonl", result(TEXTS[0]))
    with path.open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=r"got something else in line 3 of r\.jsonl"):
        BatchResults([path], "abc")
