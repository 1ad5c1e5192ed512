import sqlite3
import stat
import threading
from dataclasses import replace

import pytest

from radtower.labeling.answers.generation import Generation
from radtower.labeling.answers.ledger import Totals, is_empty_report, open_ledger
from radtower.labeling.findings import Status
from radtower.labeling.report_labels import ReportLabels
from radtower.processing.report_text import report_sha256

KEYS = ("emphysema", "mass")
FIRST = Generation({"model_id": "m", "settings.max_tokens": 10})
SECOND = Generation({"model_id": "m", "settings.max_tokens": 20, "prompt_version": None})
REPORTS = [("a", "Emphysema."), ("b", " Emphysema.\n"), ("c", ""), ("d", "Mass."), ("e", "Clear.")]
ANSWER = ReportLabels(
    status={"emphysema": Status.PRESENT, "mass": Status.NOT_MENTIONED},
    score={"emphysema": 0.1 + 0.2, "mass": None},
    evidence={"emphysema": 'Émphysema "x"', "mass": None},
    tokens_in=10,
    cost_usd=0.5,
    num_dropped_evidence=2,
)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "deep" / "labels.parquet"


@pytest.fixture
def ledger(output):
    with open_ledger(output) as ledger:
        ledger.register(REPORTS)
        ledger.use(FIRST)
        yield ledger


def to_ask(ledger, generation=FIRST, **options):
    options = {"after": -1, "limit": 100, "should_retry_failed": False} | options
    asked = ledger.to_ask(generation.hash, **options)
    names = {report_sha256(text): report_id for report_id, text in reversed(REPORTS)}
    assert [REPORTS[position][0] for position, _ in asked] == [names[sha] for _, sha in asked]
    return "".join(names[sha] for _, sha in asked)


def record(ledger, text, labels=ANSWER, generation=FIRST):
    ledger.record(generation.hash, report_sha256(text), labels)


def test_unique_reports_are_to_ask_in_order_but_for_empty_ones(ledger):
    assert to_ask(ledger) == "ade"
    assert to_ask(ledger, limit=2) == "ad"
    assert to_ask(ledger, after=0) == "de"
    assert ledger.num_to_ask(FIRST.hash, should_retry_failed=False) == 3
    assert is_empty_report(report_sha256("Not given."))
    assert not is_empty_report(report_sha256("Given."))
    assert ledger.is_registered(report_sha256("Mass."))
    assert not ledger.is_registered(report_sha256("mass."))


def test_an_answer_survives_the_file_as_it_was(output):
    with open_ledger(output) as ledger:
        counts = ledger.register(REPORTS)
        assert (counts.num_reports, counts.num_unique) == (5, 4)
        ledger.use(FIRST)
        record(ledger, "Emphysema.")
    with open_ledger(output) as ledger:
        rows = list(ledger.rows(FIRST.hash, KEYS))
        assert [report_id for report_id, _, _ in rows] == ["a", "c", "d", "e"]
        assert [sha for _, sha, _ in rows] == [report_sha256(REPORTS[row][1]) for row in (0, 2, 3, 4)]
        assert [labels for _, _, labels in rows] == [ANSWER, None, None, None]
        assert isinstance(rows[0][2].status["mass"], Status)
        assert to_ask(ledger) == "de"


def test_what_the_model_got_wrong_is_kept_unless_retried_and_the_rest_is_asked_again(ledger):
    record(ledger, "Emphysema.", ReportLabels.failed(KEYS, "reply:not_json"))
    record(ledger, "Mass.", ReportLabels.failed(KEYS, "http_500"))
    record(ledger, "Clear.")
    assert to_ask(ledger) == "d"
    assert to_ask(ledger, should_retry_failed=True) == "ad"
    assert ledger.num_to_ask(FIRST.hash, should_retry_failed=True) == 2


def test_the_cost_of_earlier_failures_counts_on(ledger):
    failed = ReportLabels.failed(KEYS, "reply:empty", tokens_in=3, tokens_out=4)
    record(ledger, "Mass.", failed)
    record(ledger, "Mass.", replace(failed, tokens_out=None, cost_usd=0.25))
    record(ledger, "Mass.")
    record(ledger, "Clear.", ReportLabels.failed(KEYS, "timeout"))
    [_, _, (_, _, mass), (_, _, clear)] = ledger.rows(FIRST.hash, KEYS)
    assert mass == replace(ANSWER, tokens_in=16, tokens_out=4, cost_usd=0.75)
    assert (clear.tokens_in, clear.cost_usd, clear.error) == (None, None, "timeout")
    assert ledger.totals(FIRST.hash) == Totals(1, 16, 4, 0.75, 2)
    assert ledger.spent_usd(FIRST.hash) == 0.75


@pytest.mark.parametrize("is_labeled", [True, False])
def test_what_a_failure_in_a_part_cost_is_counted_whatever_is_there(output, is_labeled):
    failed = ReportLabels.failed(KEYS, "reply:empty", tokens_in=3, tokens_out=4, cost_usd=0.25)
    before = ANSWER if is_labeled else failed
    with open_ledger(output.with_name("part.parquet")) as part:
        part.use(FIRST)
        for _ in range(2):  # failed twice
            record(part, "Mass.", failed)
    with open_ledger(output) as ledger:
        ledger.register(REPORTS)
        ledger.use(FIRST)
        record(ledger, "Mass.", before)
        ledger.absorb(output.with_name("part.parquet.ledger") / "ledger.sqlite", "part")
        answer = {report_id: answer for report_id, _, answer in ledger.rows(FIRST.hash, KEYS)}["d"]
        assert answer == replace(
            before,
            tokens_in=before.tokens_in + 6,
            tokens_out=(before.tokens_out or 0) + 8,
            cost_usd=before.cost_usd + 0.5,
        )
        assert ledger.spent_usd(FIRST.hash) == before.cost_usd + 0.5


def test_an_answer_of_the_same_source_is_stored_once(ledger):
    answer = replace(ANSWER, cost_usd=1.0)
    for source in ("a", "a", "b", "a"):
        ledger.record(FIRST.hash, report_sha256(REPORTS[0][1]), answer, source=source)
    assert ledger.spent_usd(FIRST.hash) == 2.0


def test_totals_are_of_the_registered_reports_and_the_cost_is_of_all(ledger):
    record(ledger, "Mass.")
    record(ledger, "Clear.")
    ledger.register([("x", "Clear."), ("y", "New.")])
    assert ledger.totals(FIRST.hash) == Totals(1, 10, None, 0.5, 2)
    assert ledger.spent_usd(FIRST.hash) == 1.0
    assert ledger.totals(SECOND.hash) == Totals(0, None, None, None, 0)
    assert ledger.spent_usd(SECOND.hash) == 0.0


def test_generations_keep_their_own_answers_and_say_what_changed(ledger):
    record(ledger, "Mass.")
    assert to_ask(ledger, SECOND) == "ade"
    assert ledger.last_generation() == FIRST
    ledger.use(SECOND)
    assert ledger.last_generation() == SECOND
    assert SECOND.changes_since(FIRST) == ("settings.max_tokens: 10 -> 20",)
    record(ledger, "Mass.", generation=SECOND)
    ledger.use(FIRST)
    assert ledger.last_generation() == FIRST
    assert to_ask(ledger) == "ae"


def test_the_hash_of_a_generation_is_of_its_parts_in_any_order():
    parts = {"a": 1, "b": None, "c": "x"}
    same = Generation(dict(reversed(parts.items())))
    assert Generation(parts).hash == same.hash
    assert len(same.hash) == 12
    hashes = {Generation(parts | {"a": value}).hash for value in (1, 2, "1", None)}
    assert len(hashes) == 4


def test_a_repeated_id_is_refused_without_naming_it_and_the_last_reports_stay(ledger):
    with pytest.raises(ValueError, match="a second time at position 2") as caught:
        ledger.register([("secret", "A."), ("b", "B."), ("secret", "C.")])
    assert "secret" not in str(caught.value)
    assert to_ask(ledger) == "ade"


def test_no_reports_are_refused(ledger):
    with pytest.raises(ValueError, match="got 0 reports"):
        ledger.register([])


def test_it_can_be_used_from_any_thread(ledger):
    threads = [threading.Thread(target=record, args=(ledger, text)) for text in ("Mass.", "Clear.")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert to_ask(ledger) == "a"


def test_it_is_private_and_holds_no_report(output):
    with open_ledger(output) as ledger:
        ledger.register([("a", "Secret Person has emphysema.")])
        ledger.use(FIRST)
        ledger.record(FIRST.hash, report_sha256("Secret Person has emphysema."), ANSWER)
    folder = output.parent / "labels.parquet.ledger"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == ["ledger.sqlite"]
    assert b"Secret" not in (folder / "ledger.sqlite").read_bytes()


def test_a_ledger_that_was_never_used_is_removed(output):
    with open_ledger(output) as ledger:
        ledger.register(REPORTS)
    assert list(output.parent.iterdir()) == []


def test_a_second_opening_is_refused_and_leaves_the_first_alone(ledger, output):
    with (
        pytest.raises(BlockingIOError, match=r"got another at work on .*labels\.parquet\.ledger"),
        open_ledger(output),
    ):
        pass
    record(ledger, "Mass.")
    assert to_ask(ledger) == "ae"


def test_an_output_that_cannot_be_a_label_table_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match=r"output must .* got 'labels\.csv'"),
        open_ledger(tmp_path / "labels.csv"),
    ):
        pass
    (tmp_path / "labels.parquet").mkdir()
    with pytest.raises(ValueError, match="got a folder"), open_ledger(tmp_path / "labels.parquet"):
        pass
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("content", "what"), [(b"x" * 2000, "not a database"), (None, "version 7")])
def test_a_file_that_is_no_ledger_of_this_version_is_refused(output, content, what):
    with open_ledger(output) as ledger:
        ledger.use(FIRST)
    path = output.parent / "labels.parquet.ledger" / "ledger.sqlite"
    if content is None:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version=7")
        connection.close()
    else:
        path.write_bytes(content)
    with (
        pytest.raises(ValueError, match=f"of version 1, got .*{what}.*Move its folder away"),
        open_ledger(output),
    ):
        pass
    assert path.exists()
