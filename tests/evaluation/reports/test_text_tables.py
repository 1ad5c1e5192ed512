import re
import shutil
import subprocess

import pytest

from radtower.evaluation.reports.text_tables import (
    escape_latex,
    escape_markdown,
    latex_tables,
    markdown_tables,
)

NASTY = r"50% of a_b & c#1 $x$ {y} ~z^2 \input{/etc/passwd} <b> | 'q' \"r\" `s` a--b" + "\n\nnext\x00line"


def test_a_table_in_markdown(make_results, zero_shot_metrics):
    text = markdown_tables([make_results(*zero_shot_metrics(), model_id="my_tower", phantom=True)])
    assert text.split("\n\n") == [
        "*Research use only, not for diagnosis.*",
        "*Phantom results: scans or reports are synthetic. They show that the software works, "
        "not that a model is good.*",
        "**my\\_tower: scans, test split; class set: two findings; labels: manual; "
        "protocol: prompt ensemble**",
        "|  | present / n | AUROC | average precision |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| mean of the findings | 125 | 0.700 (0.650-0.750) (a) |  |\n"
        "| pleural effusion | 30 / 125 | 0.700 (0.650-0.750) | 0.500 (0.450-0.550) |\n"
        "| lung nodule | 0 / 120 | undefined (b) | undefined (b) |",
        "95% intervals: patient bootstrap, percentile, 1000 resamples.",
        "(a) mean of 1 of 2 findings.",
        "(b) undefined: one class only.\n",
    ]


def test_chance_and_several_models_in_markdown(make_results, retrieval_metrics):
    both = [
        make_results(*retrieval_metrics(shift), model_id=name) for name, shift in (("a", 0.3), ("b", 0.0))
    ]
    lines = markdown_tables(both).splitlines()
    assert "|  | n | recall@1 a | recall@1 b | recall@5 a | recall@5 b |" in lines
    assert "|  | n | median rank a | median rank b |" in lines
    assert (
        "| image to report | 125 | **0.460 (0.410-0.510)** | 0.160 (0.110-0.210) | **0.760 (0.710-0.810)** "
        "| 0.460 (0.410-0.510) |"
    ) in lines
    assert "| *chance* |  | 0.008 | 0.008 | 0.040 | 0.040 |" in lines
    assert "| image to report | 125 | 6.0 (4.5-7.5) | 6.0 (4.5-7.5) |" in lines
    assert any(line.startswith("Bold: its interval lies beyond those of all others") for line in lines)


def test_a_table_in_latex(make_results, zero_shot_metrics):
    text = latex_tables([make_results(*zero_shot_metrics(), model_id="my_tower", phantom=True)])
    assert text.startswith("% Research use only, not for diagnosis.")
    assert "% Phantom results: scans" in text
    assert r"\caption{my\_tower: scans, test split; class set: two findings; labels: manual;" in text
    assert r"pleural effusion & 30 / 125 & 0.700 (0.650--0.750) & 0.500 (0.450--0.550) \\" in text
    assert r"lung nodule & 0 / 120 & undefined\textsuperscript{b} & undefined\textsuperscript{b} \\" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert r"95\% intervals" in text


def test_models_share_the_head_of_a_metric_in_latex(make_results, retrieval_metrics):
    both = [
        make_results(*retrieval_metrics(shift), model_id=name) for name, shift in (("a", 0.3), ("b", 0.0))
    ]
    text = latex_tables(both)
    assert r"\multicolumn{2}{c}{recall@1} & \multicolumn{2}{c}{recall@5}" in text
    assert r"\cmidrule(lr){3-4}\cmidrule(lr){5-6}" + "\n" in text
    assert r"\textbf{0.460 (0.410--0.510)}" in text
    assert r"\textit{chance} &  & 0.008 & 0.008" in text


def test_side_columns_stand_behind_the_numbers(make_results, make_metric):
    items = [
        make_metric("f1", finding=name, threshold=0.5, threshold_source="v", chance=chance)
        for name, chance in (("x", 0.1), ("y", 0.2))
    ]
    markdown, latex = (write([make_results(*items)]) for write in (markdown_tables, latex_tables))
    assert "|  | n | F1 | threshold | chance of F1 |" in markdown
    assert r"| x | 125 | 0.800 (0.750-0.850) | \>= 0.5 | 0.100 |" in markdown
    assert r"x & 125 & 0.800 (0.750--0.850) & \textgreater{}= 0.5 & 0.100 \\" in latex
    assert r"\begin{tabular}{lrrrr}" in latex


def test_nothing_of_a_name_is_left_active():
    text = escape_latex(NASTY)
    assert "\n" not in text
    assert "\x00" not in text
    assert text.startswith(r"50\% of a\_b \& c\#1 \$x\$ \{y\} \textasciitilde{}z\textasciicircum{}2")
    assert r"\textbackslash{}input\{/etc/passwd\}" in text
    assert "a{-}{-}b" in text
    # Without what was written for it, no special letter is left.
    assert not re.search(r"[&%$#_~^<>|\"`']", re.sub(r"\\[&%$#_{}]", "", text))
    assert escape_markdown("a_b|c*d`<script>") == r"a\_b\|c\*d\`\<script\>"
    assert escape_markdown("a\n|b") == r"a \|b"


def test_nasty_names_keep_the_columns_of_markdown(make_results, make_metric):
    item = make_metric(finding=NASTY, protocol=NASTY, note=NASTY)
    text = markdown_tables([make_results(item, model_id=NASTY)])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [4, 4, 4]
    assert "<b>" not in text.replace(r"\<b\>", "")


@pytest.fixture
def many(make_results, make_metric, zero_shot_metrics, retrieval_metrics):
    """Two models with all there is: nasty and long names, 80 findings, chance, negative bounds."""
    findings = [make_metric(finding=f"finding_{i}", n_positive=3, protocol="80") for i in range(80)]
    odd = [
        make_metric("f1", finding="x", threshold=0.5, threshold_source="v", chance=0.1, protocol="sides"),
        make_metric("f1", finding="y", threshold=0.4, threshold_source="v", chance=0.2, protocol="sides"),
        make_metric(finding=NASTY, protocol=NASTY, note=NASTY),
        make_metric("auroc_difference", -0.01, 0.03, protocol="difference"),
    ]
    metrics = [*zero_shot_metrics(), *retrieval_metrics(), *findings, *odd]
    return [make_results(*metrics, model_id=name) for name in ("tower_1", NASTY)]


def test_a_long_table_goes_over_pages(many):
    text = latex_tables(many)
    assert text.count(r"\begin{longtable}") == 1
    assert text.count(r"\begin{tabular}") == 6


def test_floats_are_set_down_every_ten_tables(make_results, make_metric):
    for number, wanted in ((10, 0), (11, 1), (20, 1), (21, 2)):
        text = latex_tables([make_results(*_of_protocols(make_metric, number))])
        assert (text.count(r"\begin{tabular}"), text.count(r"\clearpage")) == (number, wanted)
    parts = text.split(r"\clearpage")
    assert [part.count(r"\begin{tabular}") for part in parts] == [10, 10, 1]


def _of_protocols(make_metric, number):
    return [make_metric(protocol=f"protocol {i}") for i in range(number)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(many, tmp_path):
    packages = "\\usepackage[T1]{fontenc}\n\\usepackage{booktabs,graphicx,longtable,textcomp}\n"
    assert packages.replace("\n", "") in latex_tables(many).replace("\n%   ", "").replace(
        "\n", ""
    )  # as it says
    _compile(latex_tables(many), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_with_sixty_tables_compiles(make_results, make_metric, tmp_path):
    text = latex_tables([make_results(*_of_protocols(make_metric, 60))])
    _compile(text, tmp_path)
    # Without a page break in between, LaTeX gives up.
    with pytest.raises(AssertionError, match=r"dead cycles|Too many unprocessed floats"):
        _compile(text.replace(r"\clearpage", ""), tmp_path)


def _compile(tables, folder):
    packages = "\\usepackage[T1]{fontenc}\n\\usepackage{booktabs,graphicx,longtable,textcomp}\n"
    document = f"\\documentclass{{article}}\n{packages}\\begin{{document}}\n{tables}\\end{{document}}\n"
    (folder / "tables.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "tables.pdf").stat().st_size > 10_000
