import pytest

from radtower.evaluation.comparison.runs import read_run, rows_of
from radtower.evaluation.rows import scores_path


def test_rows_beside_the_results_are_read(toy, tmp_path):
    path = toy.write_scored(tmp_path / "results.json", toy.sample(1.0))
    run = read_run(path)
    assert len(run.scores) == 160
    assert run.queries is None
    path.with_suffix(".scores.parquet").unlink()
    assert read_run(path).scores is None


def test_rows_of_another_run_are_refused(toy, tmp_path):
    path = toy.write_scored(tmp_path / "results.json", toy.sample(1.0))
    rows = scores_path(path).read_bytes()
    toy.write_scored(path, toy.sample(1.0), has_rows=False)
    scores_path(path).write_bytes(rows)  # writing results removes those of the last run
    with pytest.raises(ValueError, match=r"results.scores.parquet must be of the results beside it"):
        read_run(path)


def test_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got no results.json there"):
        read_run(tmp_path / "results.json")


def test_rows_without_a_protocol_are_found(toy, tmp_path):
    run = read_run(toy.write_scored(tmp_path / "results.json", toy.sample(1.0)))
    metric = run.results.metrics[0]
    assert len(rows_of(run.scores, metric)) == 160
    for name in ("dataset", "class_set", "label_source", "protocol"):
        assert rows_of(run.scores, metric.model_copy(update={name: "another"})).empty
    nameless = metric.model_copy(update={"protocol": None})
    assert rows_of(run.scores, nameless).empty
    assert len(rows_of(run.scores.assign(protocol=None), nameless)) == 160
