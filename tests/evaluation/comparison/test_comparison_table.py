from radtower.evaluation.comparison.compare import compare_runs
from radtower.evaluation.comparison.comparison_table import as_markdown, comparison_tables
from radtower.evaluation.comparison.paired_values import Resampling
from radtower.evaluation.comparison.runs import read_run

FEW = Resampling(30)


def make_comparison(toy, folder, second=None, **changes):
    paths = [toy.write_scored(folder / "one" / "results.json", toy.sample(0.5))]
    sample = second or toy.sample(1.5)
    paths.append(toy.write_scored(folder / "two" / "results.json", sample, **changes))
    return compare_runs(*map(read_run, paths), FEW)


def test_a_row_has_both_numbers_the_difference_and_the_test(toy, tmp_path):
    comparison = make_comparison(toy, tmp_path)
    table, decisions = comparison_tables(comparison, ("A", "B"))
    assert table.title == "toy, test, toy, drawn, prompts"
    assert table.columns == ("metric", "n (positive)", "A", "B", "B - A", "DeLong p", "Holm p")
    rows = {row[0]: row for row in table.rows}
    item = next(d for d in comparison.differences if (d.metric, d.finding) == ("auroc", "effusion"))
    assert rows["auroc effusion"] == (
        "auroc effusion",
        f"80 ({item.first.n_positive})",
        f"{item.first.value:.3f} ({item.first.ci_low:.3f} to {item.first.ci_high:.3f})",
        f"{item.second.value:.3f} ({item.second.ci_low:.3f} to {item.second.ci_high:.3f})",
        f"{item.difference:+.3f} ({item.ci_low:+.3f} to {item.ci_high:+.3f})",
        "<0.001" if item.delong_p < 0.001 else f"{item.delong_p:.3f}",
        "<0.001" if item.delong_p_holm < 0.001 else f"{item.delong_p_holm:.3f}",
    )
    assert rows["macro auroc"][-2:] == ("", "")
    assert decisions.title == "toy, test, toy, drawn, prompts; thresholds: by hand"
    assert decisions.rows[0][0] == "macro accuracy"
    assert decisions.columns[-1] == "B - A"
    assert decisions.notes[1] == "Each model has its own thresholds, which the resamples keep."
    assert table.notes == (
        "Differences with 95% intervals: paired patient bootstrap, percentile, 30 resamples.",
        "p of an AUROC: DeLong, clustered by patient (Obuchowski 1997); Holm p: corrected for 2 findings.",
    )


def test_a_reason_is_said_once_below_the_table(toy, tmp_path):
    comparison = make_comparison(toy, tmp_path, has_rows=False)
    table = comparison_tables(comparison, ("A", "B"))[0]
    assert {row[4] for row in table.rows} == {"- [1]"}
    assert table.columns[-1] == "B - A"
    assert table.notes == ("[1] no paired interval: rows are not there",)


def test_other_sizes_stand_side_by_side(toy, tmp_path):
    whole = toy.sample(1.5)
    part = toy.sample(
        1.5, scores=whole.scores[:60], labels=whole.labels[:60], patient_ids=whole.patient_ids[:60]
    )
    table = comparison_tables(make_comparison(toy, tmp_path, part), ("A", "B"))[0]
    assert table.rows[0][1] == "80 / 60"


def test_markdown_is_a_document_with_its_warning(toy, tmp_path):
    comparison = make_comparison(toy, tmp_path, model_id="x|y <b>", phantom=True)
    text = as_markdown([(comparison, ("A", "B"))])
    assert text.startswith("## B against A\n\n- A: one\n- B: x\\|y &lt;b>\n- Only the second was measured")
    assert "### toy, test, toy, drawn, prompts\n\n| metric | n (positive) | A | B | B - A |" in text
    assert "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n| macro auroc | 80 |" in text
    assert text.endswith("Research use only, not for diagnosis.\n")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") for line in lines} == {6, 8}
