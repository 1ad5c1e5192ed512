import json
from pathlib import Path

import pytest

from radtower.cli.output import check_results_path, print_failures, print_json, print_table, progress_bar


def test_brackets_are_text_and_no_markup(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    print_table("scan[old]", ("name", "value"), [("folder[bold]", "[red]3")])
    out = capsys.readouterr().out
    assert "scan[old]" in out
    assert "folder[bold]" in out
    assert "[red]3" in out


def test_a_failure_is_one_line_on_stderr_whatever_its_length(capsys):
    print_failures({"scan [a]": "reason " * 40, "b": "short"})
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["failed", "scan [a]"], ["failed", "b"]]


def test_json_is_one_document(capsys):
    print_json({"b": 1.5, "a": [None]})
    assert json.loads(capsys.readouterr().out) == {"b": 1.5, "a": [None]}


def test_progress_goes_to_stderr(capsys):
    with progress_bar("Reading", 4) as on_progress:
        on_progress(3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Reading" in captured.err
    assert "3/4" in captured.err


def test_no_number_is_cut_short_in_a_narrow_window(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    print_table("t", ("name", "value"), [("recall", "0.123456789012345678")])
    out = capsys.readouterr().out
    assert "\u2026" not in out
    assert "".join(part for part in out if part in ".0123456789") == "0.123456789012345678"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(tmp_path):
    with pytest.raises(ValueError, match=r"-o must be in a folder that can be written to, got /proc/r\.json"):
        check_results_path(Path("/proc/r.json"))
    check_results_path(tmp_path / "new" / "r.json")
    assert list((tmp_path / "new").iterdir()) == []
