import tracemalloc
from collections.abc import Iterable, Iterator, Mapping

import pytest

from radtower.labeling.answers.ledger import open_ledger
from radtower.labeling.findings import Status, load_findings
from radtower.labeling.label_table import read_labels
from radtower.labeling.labeler import LabelingRun, label_reports, sha256_by_report_id
from radtower.labeling.report_labels import ReportLabels, StopLabeling, label_in_batches
from radtower.processing.report_text import report_sha256

FINDINGS = load_findings("ct_rate_18").subset(["pleural_effusion", "emphysema"])
NOTHING = {"pleural_effusion": None, "emphysema": None}


class WordBackend:
    """Present when the report names the finding; raises on the word ``boom``."""

    name = "words"
    model_id = "words-1"
    prompt_version = None

    def __init__(self, batch_size: int = 32, **settings: str | int) -> None:
        self.keys = FINDINGS.keys
        self.batch_size = batch_size
        self.settings: Mapping[str, str | int] = settings
        self.calls: list[list[str]] = []

    @property
    def asked(self) -> list[str]:
        return [report for call in self.calls for report in call]

    def label(self, reports: Iterable[str]) -> Iterator[tuple[int, ReportLabels]]:
        return label_in_batches(reports, self.label_batch, self.keys, self.batch_size)

    def label_batch(self, reports: list[str]) -> list[ReportLabels]:
        self.calls.append(reports)
        if any("boom" in report for report in reports):
            raise RuntimeError(f"cannot read {reports}")
        return [self.say(report) for report in reports]

    def say(self, report: str) -> ReportLabels:
        found = {key: key.split("_")[-1] in report.lower() for key in self.keys}
        return ReportLabels(
            status={key: Status.PRESENT if hit else Status.NOT_MENTIONED for key, hit in found.items()},
            score={key: 0.9 if hit else 0.2 for key, hit in found.items()},
            evidence=dict.fromkeys(self.keys),
            tokens_in=len(report.split()),
            cost_usd=0.25,
            num_dropped_evidence=1,
        )


class ScriptedBackend(WordBackend):
    """Fails with a code where the report says so (``fail http_500``), stops at the word ``stop``."""

    def label(self, reports):
        for position, report in enumerate(reports):
            self.calls.append([report])
            words = report.split()
            if "stop" in words:
                raise StopLabeling("budget", "max_cost must cover the run, got 1. Raise it.")
            failed = ReportLabels.failed(self.keys, words[-1], tokens_in=2, cost_usd=0.5)
            yield position, failed if words[0] == "fail" else self.say(report)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "labels.parquet"


def errors(output):
    """Reason by report id, None where there are labels."""
    table = read_labels(output)
    return dict.fromkeys(table.frame["report_id"]) | table.failures.to_dict()


def test_each_unique_text_is_labeled_once_under_its_first_id(output):
    backend = WordBackend(batch_size=2)
    reports = [("a", "Emphysema."), ("b", "Effusion."), ("c", "  Emphysema.\n"), ("d", "Clear.")]
    summary = label_reports(reports, backend, FINDINGS, output)
    assert backend.calls == [["Emphysema.", "Effusion."], ["Clear."]]
    table = read_labels(output)
    assert table.frame["report_id"].tolist() == ["a", "b", "d"]
    assert table.status_frame.loc["a"].tolist() == ["not_mentioned", "present"]
    assert table.score_matrix()[1].tolist() == [0.9, 0.2]
    assert table.num_dropped_evidence == summary.num_dropped_evidence == 3
    row = table.frame.iloc[0]
    assert (row["labeler"], row["model_id"]) == ("words", "words-1")
    assert table.frame["prompt_version"].isna().all()
    assert row["findings_set"] == "ct_rate_18[pleural_effusion,emphysema]"
    assert (row["tokens_in"], row["cost_usd"]) == (1, 0.25)
    assert table.frame["tokens_out"].isna().all()
    plan = summary.plan
    assert (plan.num_reports, plan.num_unique, plan.num_to_ask, plan.changes) == (4, 3, 3, ())
    assert (summary.num_labeled, summary.num_failed, summary.stopped) == (3, {}, None)
    assert (summary.tokens_in, summary.tokens_out, summary.cost_usd) == (3, None, 0.75)


def test_every_id_leads_to_its_row(output):
    reports = [("a", "Emphysema."), ("b", "  Emphysema.\n"), ("c", "Clear.")]
    label_reports(reports, WordBackend(), FINDINGS, output)
    frame = read_labels(output).frame
    row_of = dict(zip(frame["report_sha256"], frame["report_id"], strict=True))
    hashes = sha256_by_report_id(reports)
    assert [row_of[hashes[report_id]] for report_id in "abc"] == ["a", "a", "c"]


def test_one_failing_report_costs_only_itself_and_is_tried_again(output):
    backend = WordBackend()
    reports = [("a", "Emphysema."), ("b", "boom John Doe"), ("c", "Effusion.")]
    summary = label_reports(reports, backend, FINDINGS, output)
    assert errors(output) == {"a": None, "b": "exception:RuntimeError", "c": None}
    assert read_labels(output).frame["status"][1] == NOTHING
    assert summary.num_failed == {"exception:RuntimeError": 1}
    assert summary.first_failures == {"b": "exception:RuntimeError"}
    again = WordBackend()
    label_reports(reports, again, FINDINGS, output)
    assert again.asked == ["boom John Doe"]


def test_an_empty_report_is_a_failure_that_costs_no_call(output):
    backend = WordBackend()
    summary = label_reports([("a", " \n"), ("b", "Effusion."), ("c", "")], backend, FINDINGS, output)
    assert errors(output) == {"a": "empty_report", "b": None}
    assert backend.calls == [["Effusion."]]
    assert (summary.plan.num_unique, summary.plan.num_to_ask) == (2, 1)


def test_a_second_run_asks_nothing_and_writes_the_same_table(output):
    reports = [(str(row), f"Emphysema {row % 7}.") for row in range(20)] + [("e", "")]
    label_reports(reports, WordBackend(), FINDINGS, output)
    first = output.read_bytes()
    backend = WordBackend()
    progress: list[int] = []
    summary = label_reports(reports, backend, FINDINGS, output, on_progress=progress.append)
    assert backend.calls == progress == []
    assert output.read_bytes() == first
    assert (summary.plan.num_to_ask, summary.plan.spent_usd, summary.cost_usd) == (0, 1.75, 1.75)


def test_new_reports_are_asked_alone_and_the_table_is_of_the_reports_of_this_run(output):
    label_reports([("a", "Emphysema."), ("b", "Clear.")], WordBackend(), FINDINGS, output)
    backend = WordBackend()
    progress: list[int] = []
    reports = [("x", "Effusion."), ("y", "Emphysema.")]
    label_reports(reports, backend, FINDINGS, output, on_progress=progress.append)
    assert backend.asked == ["Effusion."]
    assert progress == [2]
    assert read_labels(output).frame["report_id"].tolist() == ["x", "y"]


def test_a_change_starts_a_new_generation_says_so_and_can_be_taken_back(output):
    reports = [("a", "Emphysema."), ("b", "Clear.")]
    label_reports(reports, WordBackend(prompt="p1", max_tokens=5), FINDINGS, output)
    backend = WordBackend(prompt="p2", max_tokens=5)
    summary = label_reports(reports, backend, FINDINGS, output)
    assert summary.plan.changes == ("settings.prompt: p1 -> p2",)
    assert sorted(backend.asked) == ["Clear.", "Emphysema."]
    backend = WordBackend(prompt="p1", max_tokens=5)
    back = label_reports(reports, backend, FINDINGS, output)
    assert back.plan.changes == ("settings.prompt: p2 -> p1",)
    assert back.plan.generation != summary.plan.generation
    assert backend.calls == []


@pytest.mark.parametrize(
    ("attribute", "value", "change"),
    [
        ("name", "other", "labeler: words -> other"),
        ("model_id", "words-2", "model_id: words-1 -> words-2"),
        ("prompt_version", "v2", "prompt_version: None -> v2"),
    ],
)
def test_every_part_of_a_backend_is_part_of_the_generation(output, attribute, value, change):
    label_reports([("a", "Clear.")], WordBackend(), FINDINGS, output)
    backend = WordBackend()
    setattr(backend, attribute, value)
    assert label_reports([("a", "Clear.")], backend, FINDINGS, output).plan.changes == (change,)
    assert backend.asked == ["Clear."]


def test_the_wording_of_a_finding_is_part_of_the_generation(output):
    label_reports([("a", "Clear.")], WordBackend(), FINDINGS, output)
    first = FINDINGS.findings[0].model_copy(update={"definition": "Water."})
    changed = FINDINGS.model_copy(update={"findings": (first, *FINDINGS.findings[1:])})
    [change] = label_reports([("a", "Clear.")], WordBackend(), changed, output).plan.changes
    assert change.startswith(f"findings: {FINDINGS.name} {FINDINGS.fingerprint} -> {FINDINGS.name} ")


def test_the_table_says_what_generation_it_is_of(output):
    label_reports([("a", "Clear.")], WordBackend(prompt="p1", max_tokens=5), FINDINGS, output)
    generation = read_labels(output).generation
    assert generation["findings"] == f"{FINDINGS.name} {FINDINGS.fingerprint}"
    assert generation["settings.prompt"] == "p1"
    assert generation["settings.max_tokens"] == 5


def test_unusable_replies_are_kept_unless_retried_and_other_failures_are_tried_again(output):
    reports = [("a", "fail reply:empty"), ("b", "fail http_500"), ("c", "Clear.")]
    summary = label_reports(reports, ScriptedBackend(), FINDINGS, output)
    assert summary.num_failed == {"reply:empty": 1, "http_500": 1}
    assert summary.cost_usd == 1.25
    again = ScriptedBackend()
    summary = label_reports(reports, again, FINDINGS, output)
    assert again.asked == ["fail http_500"]
    assert errors(output) == {"a": "reply:empty", "b": "http_500", "c": None}
    assert summary.cost_usd == 1.75
    again = ScriptedBackend()
    summary = label_reports(reports, again, FINDINGS, output, should_retry_failed=True)
    assert again.asked == ["fail reply:empty", "fail http_500"]


def test_a_stop_keeps_what_is_done_and_lists_the_rest_with_the_reason(output):
    reports = [("a", "Emphysema."), ("b", "fail http_500"), ("c", "stop"), ("d", "Clear."), ("e", "")]
    summary = label_reports(reports, ScriptedBackend(), FINDINGS, output)
    expected = {"a": None, "b": "http_500", "c": "budget", "d": "budget", "e": "empty_report"}
    assert errors(output) == expected
    assert summary.stopped == "max_cost must cover the run, got 1. Raise it."
    assert summary.num_failed == {"budget": 2, "http_500": 1, "empty_report": 1}
    again = WordBackend()
    assert label_reports(reports, again, FINDINGS, output).num_labeled == 4
    assert again.asked == ["fail http_500", "Clear.", "stop"]


def test_a_stop_before_any_label_writes_nothing(output):
    with pytest.raises(StopLabeling, match="max_cost must cover"):
        label_reports([("a", "fail http_500"), ("b", "stop")], ScriptedBackend(), FINDINGS, output)
    assert not output.exists()


def test_no_label_at_all_is_an_error_and_leaves_the_old_table(output):
    label_reports([("a", "Clear.")], WordBackend(), FINDINGS, output)
    reports = [("a", "fail http_500"), ("b", "fail timeout"), ("c", "fail x timeout"), ("d", "")]
    with pytest.raises(ValueError, match="got none of 4: timeout 2, http_500 1, empty_report 1"):
        label_reports(reports, ScriptedBackend(), FINDINGS, output)
    assert errors(output) == {"a": None}


def test_an_exception_of_the_backend_loses_no_answer(output):
    class Breaking(WordBackend):
        def label(self, reports):
            answers = super().label(reports)
            yield next(answers)
            raise RuntimeError("a bug")

    reports = [("a", "Emphysema."), ("b", "Clear.")]
    with pytest.raises(RuntimeError, match="a bug"):
        label_reports(reports, Breaking(), FINDINGS, output)
    assert not output.exists()
    again = WordBackend()
    label_reports(reports, again, FINDINGS, output)
    assert again.asked == ["Clear."]


def test_only_twenty_failures_are_named(output):
    reports = [("good", "Clear."), *((f"r{row}", f"fail {row} http_500") for row in range(25))]
    summary = label_reports(reports, ScriptedBackend(), FINDINGS, output)
    assert list(summary.first_failures) == [f"r{row}" for row in range(20)]
    assert summary.num_failed == {"http_500": 25}


def test_progress_counts_unique_reports(output):
    seen: list[int] = []
    reports = [(str(i), f"Report {i % 4}.") for i in range(8)]
    label_reports([*reports, ("e", "")], WordBackend(), FINDINGS, output, on_progress=seen.append)
    assert seen == [2, 3, 4, 5]


def test_a_run_gives_out_what_is_pending_and_takes_single_answers(output):
    reports = [("a", "Emphysema."), ("b", ""), ("c", " Clear. ")]
    backend = WordBackend()
    with open_ledger(output) as ledger:
        run = LabelingRun(ledger, ledger.register(reports), reports, backend, FINDINGS)
        pending = [(report_sha256(text), text) for text in ("Emphysema.", "Clear.")]
        assert list(run.pending()) == pending
        run.record(pending[1][0], backend.say("Clear."))
        assert list(run.pending()) == pending[:1]
        with pytest.raises(KeyError, match=report_sha256("Other.")[:12]):
            run.record(report_sha256("Other."), backend.say("Other."))
        summary = run.write(output)
    assert errors(output) == {"a": "not_asked", "b": "empty_report", "c": None}
    assert (summary.num_labeled, summary.num_failed) == (1, {"not_asked": 1, "empty_report": 1})
    assert backend.calls == []


def test_a_plan_alone_leaves_nothing_behind(output):
    with open_ledger(output) as ledger:
        run = LabelingRun(ledger, ledger.register([("a", "A.")]), [("a", "A.")], WordBackend(), FINDINGS)
        assert run.plan.num_to_ask == 1
    assert list(output.parent.iterdir()) == []


def test_reports_that_change_between_the_two_readings_are_refused(output):
    class Changing:
        def __init__(self, *tables):
            self.tables = list(tables)

        def __iter__(self):
            return iter(self.tables.pop(0))

    before = [("a", "A."), ("b", "B.")]
    for after in ([("a", "A."), ("b", "C.")], [("a", "A.")]):
        with pytest.raises(ValueError, match="another report or none at position 1"):
            label_reports(Changing(before, after), WordBackend(), FINDINGS, output)


def test_a_generator_of_reports_is_refused(output):
    with pytest.raises(TypeError, match="must be readable twice, got a generator"):
        label_reports((pair for pair in [("a", "A.")]), WordBackend(), FINDINGS, output)


def test_no_reports_and_repeated_ids_are_refused_before_anything_is_asked(output):
    backend = WordBackend()
    with pytest.raises(ValueError, match="got 0 reports"):
        label_reports([], backend, FINDINGS, output)
    with pytest.raises(ValueError, match="a second time at position 1"):
        label_reports([("a", "A."), ("a", "B.")], backend, FINDINGS, output)
    assert backend.calls == []
    assert list(output.parent.iterdir()) == []


def test_a_backend_that_loses_a_report_is_refused_and_the_other_answers_are_kept(output):
    class Losing(WordBackend):
        def label(self, reports):
            return list(super().label(reports))[1:]

    with pytest.raises(ValueError, match=r"got none for 1 of 2\. Fix 'words'"):
        label_reports([("a", "AA."), ("b", "B.")], Losing(), FINDINGS, output)
    again = WordBackend()
    label_reports([("a", "AA."), ("b", "B.")], again, FINDINGS, output)
    assert again.asked == ["AA."]


def test_a_backend_that_does_not_take_every_report_is_refused(output):
    class Lazy(WordBackend):
        def label(self, reports):
            yield 0, self.say(next(iter(reports)))

    with pytest.raises(ValueError, match="got none for 1 of 2"):
        label_reports([("a", "A."), ("b", "B.")], Lazy(), FINDINGS, output)


@pytest.mark.parametrize("position", [0, 7])
def test_a_backend_that_answers_for_what_it_does_not_have_is_refused(output, position):
    class Repeating(WordBackend):
        def label(self, reports):
            for report in reports:
                yield 0, self.say(report)
                yield position, self.say(report)

    with pytest.raises(ValueError, match=f"got position {position}, which it does not have. Fix 'words'"):
        label_reports([("a", "A.")], Repeating(), FINDINGS, output)


def test_a_backend_with_other_findings_is_refused(output):
    backend = WordBackend()
    backend.keys = FINDINGS.keys[::-1]
    with pytest.raises(ValueError, match=r"got \['emphysema', 'pleural_effusion'\]"):
        label_reports([("a", "A.")], backend, FINDINGS, output)


def test_a_backend_in_the_background_is_closed_when_the_run_breaks(output):
    closed = []

    class Background(WordBackend):
        def label(self, reports):
            try:
                yield from super().label(reports)
            finally:
                closed.append(True)

    def fail(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_reports([("a", "A."), ("b", "B.")], Background(), FINDINGS, output, on_progress=fail)
    assert closed == [True]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_reports(output):
    class Numbered:
        def __init__(self, number: int) -> None:
            self.number = number

        def __iter__(self):
            return ((f"r{row}", f"Emphysema {row}.") for row in range(self.number))

    class Forgetful(WordBackend):
        def label_batch(self, reports):
            return [self.say(report) for report in reports]

    peaks = []
    for number in (2000, 20_000):
        tracemalloc.start()
        summary = label_reports(
            Numbered(number), Forgetful(), FINDINGS, output.with_name(f"{number}.parquet")
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert summary.num_labeled == number
    assert peaks[1] < 1.1 * peaks[0]
