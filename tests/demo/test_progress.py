from radtower.demo.progress import Steps


def test_a_log_gets_one_line_per_finished_stage(capsys):
    with Steps() as steps:
        with steps.step("First", 4) as on_progress:
            on_progress(2)
        assert capsys.readouterr().err == "First: 0 s\n"
        with steps.step("Second"):
            assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "Second: 0 s\n"


def test_a_terminal_gets_bars_that_end_full(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Steps() as steps:
        with steps.step("Known", 4) as on_progress:
            on_progress(3)
            assert (steps.progress.tasks[0].completed, steps.progress.tasks[0].total) == (3, 4)
        with steps.step("Unknown") as on_progress:
            on_progress(2, 10)
            assert (steps.progress.tasks[1].completed, steps.progress.tasks[1].total) == (2, 10)
        with steps.step("Silent"):
            pass
        assert [(task.completed, task.total) for task in steps.progress.tasks] == [(4, 4), (10, 10), (1, 1)]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Unknown" in captured.err
