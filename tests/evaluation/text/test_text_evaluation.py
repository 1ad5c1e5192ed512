"""The whole run: tasks a table can give, paired differences, the probe."""

import numpy as np
import pytest

from radtower.evaluation.results import Provenance
from radtower.evaluation.task_scores import Metric, NothingToMeasure, TaskScores, mean_scores
from radtower.evaluation.text.linear_probe import LinearProbe
from radtower.evaluation.text.scorers import EmbeddingScorer
from radtower.evaluation.text.text_evaluation import build_tasks, evaluate_text

KEY = {"metric", "finding", "direction", "dataset", "protocol"}
PROVENANCE = Provenance(dataset="toy", class_set="none", label_source="hand")


def scores_of(values: list[list[float]], patients: str) -> TaskScores:
    array = np.array(values, dtype=float)
    return TaskScores(
        task="toy",
        provenance=PROVENANCE,
        metrics=(Metric(name="first", n=len(array)), Metric(name="second", n=2, note="two only")),
        patient_ids=np.array(list(patients)),
        weighted=mean_scores(array),
    )


def test_means_are_over_the_rows_that_have_a_value():
    scores = scores_of([[1, np.nan], [0, 4], [0, 1]], "abc")
    assert scores.values() == pytest.approx([1 / 3, 2.5])
    np.testing.assert_allclose(scores.weighted(np.array([[3, 1, 0], [1, 0, 0]])), [[0.75, 4], [1, np.nan]])
    first, second = scores.results(500)
    assert (first.value, first.n, second.note.startswith("two only")) == (pytest.approx(1 / 3), 3, True)
    assert first.ci_low == 0.0


def test_a_difference_is_paired():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=60)
    ids = "".join(chr(65 + row) for row in range(60))
    model = scores_of([[value + 0.1, 1] for value in noise], ids)
    baseline = scores_of([[value, 0.25] for value in noise], ids)
    first, second = model.minus(baseline, "base", 500)
    # The noise is the same in both: it cancels.
    assert first.value == pytest.approx(0.1)
    assert (first.ci_low, first.ci_high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert first.metric == "first_difference"
    assert first.protocol == "model minus base"
    assert second.value == 0.75
    assert second.note is None


def test_a_difference_of_other_rows_is_refused():
    with pytest.raises(ValueError, match="same 2 rows and 2 metrics, got 3 and 2"):
        scores_of([[1, 1]] * 2, "ab").minus(scores_of([[1, 1]] * 3, "abc"), "base")
    with pytest.raises(ValueError, match="got 2 and 2"):
        scores_of([[1, 1]] * 2, "ab").minus(scores_of([[1, 1]] * 2, "ac"), "base")


def test_a_table_gives_the_tasks_it_has_data_for(table, make_table, studies):
    assert [task.name for task in build_tasks(table)] == [
        *["retrieval"] * 4,
        "label retrieval",
        *["error discrimination"] * 4,
        "negation",
    ]
    no_sections = table.rows((table.frame["study_id"] == "s0").to_numpy())
    assert [task.name for task in build_tasks(no_sections)][:2] == ["label retrieval", "error discrimination"]
    whole = make_table(studies * 3, ["train"] * 6 + ["validation"] * 6 + ["test"] * 6)
    assert build_tasks(whole)[-1].name == "linear probe"
    assert build_tasks(whole, names=["negation"])[0].dataset == "toy (test)"
    with pytest.raises(ValueError, match=r"got \['bleu'\]"):
        build_tasks(table, names=["bleu"])
    with pytest.raises(ValueError, match=r"got \['linear probe'\] for 6 studies .* splits \['test'\]"):
        build_tasks(table, names=["linear probe"])


def test_model_and_baselines_answer_the_same_questions(table, bag_of_words, oracle):
    tasks = build_tasks(table)
    seen: list[int] = []
    done = evaluate_text(bag_of_words, tasks, [oracle({})], num_resamples=50, on_progress=seen.append)
    # Six studies give no ten questions: four tasks of error discrimination are not measured.
    assert seen == [*range(1, 11), 12, 14, 16, 18, 19, 20][: len(seen)]
    assert seen[-1] == 2 * len(tasks)
    assert len(done.model.not_measured) == 4
    assert done.model.not_measured[0].startswith("error discrimination, findings_impression: no kind")
    assert done.baselines["oracle"].not_measured == done.model.not_measured
    assert not done.model.phantom
    own = [m for m in done.model.metrics if not m.metric.endswith("_difference")]
    assert len(done.model.metrics) == 2 * len(own)
    assert done.baselines["oracle"].model_id == "oracle"
    theirs = {m.model_dump_json(include=KEY): m.value for m in done.baselines["oracle"].metrics}
    differences = {f"{m.metric}{m.protocol}{m.finding}{m.direction}": m.value for m in done.model.metrics}
    gaps = []
    for m in own:
        place = f"{m.metric}_difference{m.protocol}; model minus oracle{m.finding}{m.direction}"
        other = theirs[m.model_dump_json(include=KEY)]
        if m.value is not None and other is not None:
            gaps.append(m.value - other)
            assert differences[place] == pytest.approx(gaps[-1])
    assert len(gaps) > 16
    assert len(set(gaps)) > 2


def test_two_scorers_of_one_name_are_refused(table, bag_of_words):
    with pytest.raises(ValueError, match=r"got \['bag', 'bag'\]"):
        evaluate_text(bag_of_words, build_tasks(table), [EmbeddingScorer("bag", len)])


def probe_tables(num_train: int, make_table) -> list:
    rng = np.random.default_rng(0)
    tables = []
    for size in (num_train, 20, 40):
        nodule, effusion, hernia = rng.integers(0, 2, size=(3, size))
        hernia[:] = 0
        texts = [
            f"{'nodule' if n else 'clear'} {'effusion' if e else 'dry'} case {row}"
            for row, (n, e) in enumerate(zip(nodule, effusion, strict=True))
        ]
        noise = rng.integers(0, 2, size=size)
        tables.append(make_table(list(zip(texts, [""] * size, nodule, noise, hernia, strict=True))))
    return tables


def test_the_probe_reads_what_is_in_the_vectors_and_nothing_else(bag_of_words, make_table):
    probe = LinearProbe(*probe_tables(80, make_table), "toy", "3 labels", "hand")
    scores = probe.score(bag_of_words)
    found = {m.finding: v for m, v in zip(scores.metrics, scores.values(), strict=True)}
    assert found["nodule"] == 1.0
    assert 0.2 < found["effusion"] < 0.8  # its labels are noise
    assert "hernia" not in found  # no positive
    assert found[None] == pytest.approx((found["nodule"] + found["effusion"]) / 2)
    assert scores.metrics[0].note.startswith("mean of 2 of 3 labels; C = ")
    assert scores.provenance.protocol == "logistic regression on 80 reports"


def test_bm25_has_no_vectors_and_no_probe(bag_of_words, by_words, make_table):
    probe = LinearProbe(*probe_tables(40, make_table), "toy", "3 labels", "hand")
    done = evaluate_text(bag_of_words, [probe], [by_words], num_resamples=20)
    assert done.baselines["words"].metrics == ()
    assert {m.metric for m in done.model.metrics} == {"probe_macro_auroc", "probe_auroc"}


def test_a_label_needs_studies_with_and_without_it(bag_of_words, make_table):
    train, validation, test = probe_tables(40, make_table)
    test.labels[:, 0] = 1
    test.labels[:, 1] = 0
    probe = LinearProbe(train, validation, test, "toy", "3 labels", "hand")
    with pytest.raises(NothingToMeasure, match="linear probe: none of 3 labels has 10 studies"):
        probe.score(bag_of_words)
    test.labels[:3, 0] = 0
    assert LinearProbe(train, validation, test, "toy", "3 labels", "hand").columns == [0]


def test_a_run_without_any_question_is_refused_and_says_why(make_table, bag_of_words):
    tasks = build_tasks(make_table([("Hello.", "Hello.", 1), ("Hello.", "Hello.", 1)]))
    seen: list[int] = []
    with pytest.raises(NothingToMeasure, match=r"at least one .* retrieval, find.*; label.*; negation: no"):
        evaluate_text(bag_of_words, tasks, on_progress=seen.append)
    assert seen[-1] == len(tasks)


def test_phantom_reports_are_recorded_as_such(table, bag_of_words):
    tasks = build_tasks(table, names=["negation"])
    assert evaluate_text(bag_of_words, tasks, num_resamples=5, is_phantom=True).model.phantom
