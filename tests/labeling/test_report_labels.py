import pytest

from radtower.labeling.findings import Status
from radtower.labeling.report_labels import (
    BATCHES_PER_WINDOW,
    ReportLabels,
    StopLabeling,
    label_in_batches,
)

KEYS = ("emphysema", "mass")


def said(text: str) -> ReportLabels:
    return ReportLabels(
        status=dict.fromkeys(KEYS, Status.ABSENT),
        score=dict.fromkeys(KEYS, 0.25),
        evidence=dict.fromkeys(KEYS),
        tokens_in=len(text),
    )


class Recorder:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str]) -> list[ReportLabels]:
        self.calls.append(texts)
        if "stop" in texts:
            raise StopLabeling("budget", "max_cost must cover the run, got 1. Raise it.")
        if "boom" in texts:
            raise RuntimeError("boom John Doe")
        return [said(text) for text in texts]


def test_every_position_comes_once_with_its_own_labels():
    texts = ["x" * length for length in (3, 9, 1, 7, 5)]
    got = dict(label_in_batches(texts, Recorder(), KEYS, batch_size=2))
    assert {position: labels.tokens_in for position, labels in got.items()} == {0: 3, 1: 9, 2: 1, 3: 7, 4: 5}


def test_a_window_is_sorted_by_length_the_longest_first():
    recorder = Recorder()
    list(label_in_batches(["b" * 2, "d" * 4, "a", "c" * 3], recorder, KEYS, batch_size=2))
    assert recorder.calls == [["dddd", "ccc"], ["bb", "a"]]


def test_reports_are_taken_a_window_at_a_time():
    taken: list[int] = []

    def reports():
        for number in range(3 * BATCHES_PER_WINDOW):
            taken.append(number)
            yield f"report {number}"

    answers = label_in_batches(reports(), Recorder(), KEYS, batch_size=1)
    assert taken == []
    next(answers)
    assert len(taken) == BATCHES_PER_WINDOW
    assert len(list(answers)) == 3 * BATCHES_PER_WINDOW - 1


def test_an_exception_costs_only_the_report_that_raises_alone():
    recorder = Recorder()
    got = dict(label_in_batches(["fine", "boom", "good"], recorder, KEYS, batch_size=3))
    assert [got[position].error for position in range(3)] == [None, "exception:RuntimeError", None]
    assert got[1] == ReportLabels.failed(KEYS, "exception:RuntimeError")
    assert got[1].status == {"emphysema": None, "mass": None}
    assert [len(call) for call in recorder.calls] == [3, 1, 1, 1]


def test_a_stop_ends_the_loop_and_is_not_tried_alone():
    recorder = Recorder()
    answers = label_in_batches(["a longer report", "stop", "x"], recorder, KEYS, batch_size=1)
    assert next(answers)[0] == 0
    with pytest.raises(StopLabeling, match=r"got 1\. Raise it") as stopped:
        next(answers)
    assert stopped.value.reason == "budget"
    assert recorder.calls == [["a longer report"], ["stop"]]


def test_a_batch_that_loses_a_report_is_refused():
    with pytest.raises(ValueError, match="got 1 for 2"):
        list(label_in_batches(["a", "b"], lambda texts: [said(texts[0])], KEYS, batch_size=2))


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        list(label_in_batches([], Recorder(), KEYS, batch_size=0))


def test_a_failure_keeps_what_it_cost():
    labels = ReportLabels.failed(KEYS, "reply:empty", tokens_in=3, tokens_out=2, cost_usd=0.5)
    assert (labels.tokens_in, labels.tokens_out, labels.cost_usd) == (3, 2, 0.5)
    assert labels.error == "reply:empty"
