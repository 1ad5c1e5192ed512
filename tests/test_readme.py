"""The examples of the README run as printed."""

import re
from pathlib import Path

import pytest

from radtower.demo.cohort import write_cohort
from radtower.hub_cards.export import export_model

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run_as_printed(tiny_medclip, tmp_path, monkeypatch, capsys):
    example, of_pipeline = re.findall(
        r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert len(example.splitlines()) == 10
    # What `make demo` leaves behind, in miniature.
    write_cohort(tmp_path / "demo_output" / "cohort", 1, 0, {"train": 1.0})
    tiny_medclip.save_pretrained(tmp_path / "model")
    tiny_medclip.processor.save_pretrained(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "demo_output" / "export")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    spacing, image, text, similarities, scores = capsys.readouterr().out.strip().split("\n")
    assert len(spacing.strip("()").split(",")) == 3
    assert image == text == "torch.Size([1, 12])"
    assert re.fullmatch(r"tensor\(\[\[-?\d.\d+, -?\d.\d+\]\]\)", similarities)
    assert re.fullmatch(r"tensor\(\[\[0.\d+, 0.\d+\]\]\)", scores)
    exec(compile(of_pipeline, "README.md", "exec"), names)
    listed = capsys.readouterr().out
    assert sorted(f"{float(score):.4f}" for score in re.findall(r"'score': (0\.\d+)", listed)) == sorted(
        f"{float(score):.4f}" for score in re.findall(r"0\.\d+", scores)
    )


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_names_the_two_commands(command):
    assert f"\n{command} " in README.read_text(encoding="utf-8")
