import html
import json
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib")

from radtower.evaluation.reports.html_parts import EN_DASH
from radtower.evaluation.reports.page import picture_digest
from radtower.evaluation.reports.report import ReportOptions, write_report
from radtower.evaluation.reports.runs import read_runs
from radtower.evaluation.reports.wording import counts, row_name, value_and_interval
from radtower.evaluation.rows import ScoreRows, write_rows

QUICK = ReportOptions(num_resamples=20)
NASTY = "<script>alert('x')</script> & \"a_b\" </title></svg> $x$ {y}"


class Reader(HTMLParser):
    """Tags with their attributes, and the text outside of style and script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self._open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if not {"style", "script"} & set(self._open):
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def read(paths, folder, options=QUICK):
    written = write_report(paths, folder, options)
    return written, Reader(written[0].read_text(encoding="utf-8"))


@pytest.fixture
def page(whole_report):
    return Reader(whole_report[0].read_text(encoding="utf-8"))


def test_everything_that_lies_beside_the_results_is_shown(whole_report, page):
    written = whole_report
    assert [path.name for path in written] == [
        "report.html",
        "tables.md",
        "tables.tex",
        "forest-1.png",
        "roc-1.png",
        "reliability-1.png",
        "recall-2.png",
        "picture-1-map.png",
        "pictures.json",
    ]
    assert sorted(p.name for p in written[0].parent.iterdir()) == sorted(p.name for p in written)
    for wanted in (
        "Evaluation of tower",
        "Phantom results: scans or reports are synthetic.",
        "Research use only, not for diagnosis.",
        "model tower; revision not known (a local folder); measured 2026-01-01; 9 numbers, n = 120 to 125; "
        "2 undefined",
        "scans, test split: prompt ensemble",
        "scans, test split: exact row",
        "AUROC, mean of the findings",
        "n = 125; 95%: 0.650 to 0.750 scans, test split; class set: two findings; labels: manual; protocol: "
        "prompt ensemble",
        "n = 125; 95%: 0.410 to 0.510; chance 0.040",
        "undefined: one class only",
        "ROC curves. n = 40 items of 20 patients. Band: 95% of 20 resamples of the patients",
        "Without a curve, as they have one class only: lung nodule.",
        "n = 40 queries of 20 patients in each direction.",
        "n = 80 scores with a known label, all findings together, in 10 bins of equal width.",
        "A map. Principal components, n = 3.",
        "Not measured heat maps: no scans",
        "results schema 1; results of 2026-01-01T00:00:00+00:00.",
    ):
        assert wanted in page.text, wanted


def test_no_file_names_a_patient_or_scan(whole_report):
    assert all(b"secret-" not in path.read_bytes() for path in whole_report)


def test_a_page_of_patients_has_no_phantom_notice(write_run, tmp_path):
    _, page = read([write_run(has_rows=False)], tmp_path / "out")
    assert "Phantom" not in page.text


def test_the_page_asks_for_nothing_and_says_what_its_pictures_show(whole_report, page):
    sources = [a[name] for _, a in page.tags for name in ("src", "href", "xlink:href") if name in a]
    assert sources
    assert {re.split("[:#]", source)[0] for source in sources} <= {"data", ""}
    assert "url(" not in re.sub(r"url\(#", "", whole_report[0].read_text())
    assert all(len(image["alt"]) > 3 for image in page.all("img"))
    drawings = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(drawings) == 4
    assert all(len(svg["aria-label"]) > 20 for svg in drawings)
    said = " ".join(svg["aria-label"] for svg in drawings)
    assert "Intervals of 2 findings; AUROC from 0.70 (pleural effusion) to 0.70 (pleural effusion)." in said
    assert "image to report, tower: recall@1" in said
    assert (
        "chance" in whole_report[0].read_text().partition("<strong>Recall at k")[0].rpartition("<figure>")[2]
    )
    assert {head["scope"] for head in page.all("th")} == {"row", "col"}
    assert len(page.all("caption")) == len(page.all("table")) == 2
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [a["href"][1:] for a in page.all("a")]
    assert set(links) <= set(ids)


def test_the_same_results_give_the_same_bytes(whole_report, tmp_path):
    path = whole_report[0].parents[1] / "run" / "results.json"
    again = write_report([path], tmp_path, QUICK)
    assert [p.read_bytes() for p in whole_report] == [p.read_bytes() for p in again]


def test_a_hostile_name_is_inert(write_run, make_metric, tmp_path):
    items = [
        make_metric(
            finding=NASTY, dataset=NASTY, class_set=NASTY, label_source=NASTY, protocol=NASTY, note=NASTY
        ),
        make_metric(NASTY, dataset=NASTY),
    ]
    path = write_run(
        metrics=items, has_rows=False, model_id=NASTY, model_revision=NASTY, not_measured=(NASTY,)
    )
    written, page = read([path], tmp_path / "out", ReportOptions(NASTY, (NASTY,), 20))
    assert len(page.all("script")) == 1  # ours
    assert len(page.all("title")) == 1
    assert "alert('x')" in page.text
    assert "<script>alert" not in written[0].read_text()
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    )


def test_two_models_side_by_side(write_run, tmp_path):
    paths = [write_run(name, seed=seed) for seed, name in enumerate(("a", "b"))]
    written, page = read(paths, tmp_path / "out")
    assert "Evaluation of tower (1), tower (2)" in page.text
    assert "picture-2-map.png" in [path.name for path in written]
    assert page.text.count("tower (1) A map.") == 1
    assert "radtower report 1/results.json 2/results.json -o FOLDER" in page.text


def test_the_best_number_is_bold_and_what_that_means_is_said(write_run, make_metric, tmp_path):
    paths = [
        write_run(name, model_id=name, metrics=[make_metric("exact_row", value)], has_rows=False)
        for name, value in (("a", 0.5), ("a_longer_name", 0.9))
    ]
    written, page = read(paths, tmp_path / "out")
    assert '<span class="of">a_<wbr>longer_<wbr>name</span>' in written[0].read_text()
    assert re.findall(r'class="best"><span class="value">([\d.]+)', written[0].read_text()) == ["0.900"]
    assert "Bold: its interval lies beyond those of all others." in page.text


def test_numbers_on_top_are_one_per_metric_and_none_of_a_test_oracle(write_run, make_metric, tmp_path):
    metrics = [
        make_metric("macro_f1", 0.91, threshold_source="test_oracle: chosen on the very labels"),
        make_metric("macro_f1", 0.42, threshold_source="validation split"),
        make_metric("macro_f1", 0.43, threshold_source="fixed at 0.5"),
        make_metric("macro_auroc", 0.64, class_set="18 findings"),
        make_metric("macro_auroc", 0.65, class_set="16 findings"),
    ]
    written, _ = read([write_run(metrics=metrics, has_rows=False)], tmp_path / "out")
    cards = re.findall(r'<div class="value">([\d.]+)</div>', written[0].read_text())
    assert cards == ["0.640", "0.420"]
    assert "thresholds: validation split" in written[0].read_text().partition("<main")[0]


def test_commands_and_title_are_said(write_run, tmp_path):
    _, page = read([write_run(has_rows=False)], tmp_path / "out", ReportOptions("My page", ("make demo",)))
    assert "My page" in page.text
    assert "The results were made by make demo" in page.text
    _, other = read([write_run("b", has_rows=False)], tmp_path / "other")
    assert "How the results were made is not recorded" in other.text


def test_results_without_a_defined_number_say_so(write_run, make_metric, tmp_path):
    undefined = make_metric(value=None, finding="x")
    _, page = read([write_run(metrics=[undefined], has_rows=False)], tmp_path / "out")
    assert "No number of this model is defined" in page.text
    assert "0 numbers, n = 125; 1 undefined" in page.text
    assert " nan" not in page.text.lower()


def test_pictures_of_numbers_are_told_for_model_cards_and_those_of_scans_are_not(whole_report, page):
    told = json.loads((whole_report[0].parent / "pictures.json").read_text())
    assert told["runs"] == [{"model_id": "tower", "created": "2026-01-01 00:00:00+00:00"}]
    files = [figure["file"] for figure in told["figures"]]
    assert files == ["forest-1.png", "roc-1.png", "reliability-1.png", "recall-2.png"]
    assert told["figures"][1]["title"] == "ROC curves"
    assert told["figures"][1]["alt"] == "ROC curves of 1 findings with bands; the areas stand in the table."
    for figure in told["figures"]:
        assert " ".join(figure["caption"].split()) in page.text


def test_one_number_is_a_page(write_run, make_metric, tmp_path):
    written, page = read([write_run(metrics=[make_metric("exact_row")], has_rows=False)], tmp_path / "out")
    assert [path.name for path in written] == ["report.html", "tables.md", "tables.tex", "pictures.json"]
    assert "exact row, all n = 125; 95%: 0.750 to 0.850" in page.text.replace(" 0.800", "")
    assert not page.all("nav")


def test_eighty_findings_of_long_names(write_run, make_metric, tmp_path):
    items = [make_metric(finding=f"{'very_' * 20}long_{i}", n_positive=3) for i in range(80)]
    written, page = read([write_run(metrics=items, has_rows=False)], tmp_path / "out")
    assert len(page.all("tr")) == 81
    assert "forest-1.png" in [path.name for path in written]


def test_thresholds_of_several_sources_leave_f1_out_of_the_forest(write_run, make_metric, tmp_path):
    items = [
        make_metric("f1", finding="x", threshold_source=source, value=value)
        for source, value in (("validation", 0.4), ("test_oracle", 0.6))
    ]
    written, _ = read([write_run(metrics=items, has_rows=False)], tmp_path / "out")
    assert "forest-1.png" not in [path.name for path in written]


def test_sections_of_one_name_are_told_apart(write_run, make_metric, tmp_path):
    items = [make_metric(label_source=source) for source in ("manual", "silver")]
    _, page = read([write_run(metrics=items, has_rows=False)], tmp_path / "out")
    assert page.text.count("scans, test split; silver") == 2  # in the contents and above the section
    more = [make_metric(class_set=name) for name in ("18 findings", "16 findings")]
    _, page = read([write_run("b", metrics=more, has_rows=False)], tmp_path / "other")
    assert "scans, test split; 16 findings" not in page.text
    assert [tag["id"] for tag in page.all("h2") if "id" in tag] == ["s1", "how"]  # one section of two tables
    assert [text for text in page.texts if "class set:" in text and "tower" in text] == [
        f"tower: scans, test split; class set: {number} findings; labels: manual" for number in (18, 16)
    ]


def test_states_of_labels_are_added_up(write_run, make_metric, tmp_path):
    confusion = {
        "a": {"present": {"present": 3, "absent": 1}, "absent": {"present": 0, "absent": 5}},
        "b": {"present": {"present": 2, "not_mentioned": 4}},
    }
    _, page = read(
        [write_run(metrics=[make_metric()], has_rows=False, confusion=confusion)], tmp_path / "out"
    )
    assert "gold present absent not mentioned present 5 1 4 absent 0 5 0" in page.text


def test_scores_that_are_no_probabilities_have_no_reliability(write_run, tmp_path):
    path = write_run()
    run = read_runs([path])[0]
    frame = run.scores.assign(score=run.scores["score"] * 5)
    write_rows(ScoreRows(frame), run.results, path)
    written, _ = read([path], tmp_path / "out")
    assert "reliability-1.png" not in [p.name for p in written]
    assert "roc-1.png" in [p.name for p in written]


def test_refuses_what_is_no_report(write_run, tmp_path):
    path = write_run(has_rows=False)
    with pytest.raises(ValueError, match=r"paths must name a results.json, got none"):
        write_report([], tmp_path / "out")
    with pytest.raises(ValueError, match=r"-o must be a folder, got the file 'results.json'"):
        write_report([path], path)
    with pytest.raises(FileNotFoundError, match=r"results must be a file, got no none.json there"):
        write_report([tmp_path / "none.json"], tmp_path / "out")
    with pytest.raises(ValueError, match="different files, got one of them twice"):
        write_report([path, path.parent / "." / path.name], tmp_path / "out")
    with pytest.raises(ValueError, match="results must hold a metric, got 1 without"):
        write_report([write_run("empty", metrics=[], has_rows=False)], tmp_path / "out")


def test_rows_of_another_run_are_refused(write_run, tmp_path):
    one, other = write_run("one"), write_run("other", model_id="b")
    (one.parent / "results.scores.parquet").replace(other.parent / "results.scores.parquet")
    with pytest.raises(ValueError, match="must be of the results beside it, got model_id 'tower'"):
        write_report([other], tmp_path / "out", QUICK)


def test_sections_are_in_the_order_of_the_results_and_pictures_come_before_tables(whole_report):
    text = whole_report[0].read_text(encoding="utf-8")
    marks = [
        *('<ul class="cards">', '<nav aria-label="Contents">', '<h2 id="s1">'),
        *("Intervals per finding.", "ROC curves.", "Reliability.", "protocol: prompt ensemble</span>"),
        *('<h2 id="s2">', "Recall at k.", "protocol: exact row</span>"),
        *('<h2 id="pictures">', "<h2>Not measured</h2>", '<h2 id="how">', "<footer>"),
    ]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)


def test_every_number_is_on_the_page_with_its_interval_and_its_n(whole_report, write_run, tmp_path):
    results = read_runs([write_run(phantom=True)])[0].results
    rows = _table_rows(whole_report[0].read_text(encoding="utf-8"))
    assert len(results.metrics) == 11
    for item in results.metrics:
        wanted = "undefined" if item.value is None else value_and_interval(item, EN_DASH)
        fitting = [row for row in rows if row[:2] == [row_name(item), counts(item)]]
        assert any(cell.startswith(wanted) for row in fitting for cell in row[2:]), (item.metric, wanted)


def test_baselines_and_further_class_sets_are_in_the_section_of_their_protocol(
    write_run, make_metric, tmp_path
):
    items = [
        make_metric("label_jaccard", 0.4, protocol="top 1"),
        make_metric("label_jaccard_baseline", 0.3, protocol="top 1; random report"),
        make_metric("label_jaccard_difference", 0.1, protocol="top 1; model minus random report"),
        make_metric("macro_auroc", 0.7, protocol="prompts"),
        make_metric("macro_auroc", 0.6, protocol="prompts", class_set="one finding"),
    ]
    _, page = read([write_run(metrics=items, has_rows=False)], tmp_path / "out")
    assert [tag["id"] for tag in page.all("h2") if "id" in tag] == ["s1", "s2", "how"]
    for wanted in (
        "all: tower 125 0.400",
        "all: random report 125 0.300",
        "tower minus random report 125 0.100",
    ):
        assert wanted in page.text


def test_class_sets_of_one_section_have_pictures_of_their_own(write_run, make_metric, tmp_path):
    items = [
        make_metric(finding="nodule", n_positive=3, class_set=name, protocol="prompts")
        for name in ("18 findings", "16 findings")
    ]
    written, page = read([write_run(metrics=items, has_rows=False)], tmp_path / "out")
    assert [path.name for path in written if path.suffix == ".png"] == ["forest-1.png", "forest-1-2.png"]
    assert "class set: 16 findings; labels: manual; prompts." in page.text


def test_pictures_of_an_earlier_report_are_removed_and_nothing_else(write_run, make_metric, tmp_path):
    out = tmp_path / "out"
    read([write_run()], out)
    changed = out / "roc-1.png"
    changed.write_bytes(changed.read_bytes() + b"edited by hand")
    (out / "forest-7.png").write_bytes(b"of the user")
    number = [make_metric("brier", 0.2)]
    written, _ = read([write_run("other", metrics=number, has_rows=False)], out)
    assert [path.name for path in written] == ["report.html", "tables.md", "tables.tex", "pictures.json"]
    kept = {"report.html", "tables.md", "tables.tex", "pictures.json", "roc-1.png", "forest-7.png"}
    assert {path.name for path in out.iterdir()} == kept


def test_a_page_cannot_name_files_elsewhere_for_removal(write_run, make_metric, tmp_path):
    out, outside = tmp_path / "out", tmp_path / "scan.png"
    outside.write_bytes(b"mine")
    out.mkdir()
    (out / "link.png").symlink_to(outside)
    digest = picture_digest(b"mine")
    (out / "notes.txt").write_bytes(b"mine")
    names = ("../scan.png", "link.png", "notes.txt", "absent.png")
    told = " ".join(f"{name}:{digest}" for name in names)
    (out / "report.html").write_text(f'<meta name="radtower-pictures" content="{told}">')
    read([write_run(metrics=[make_metric()], has_rows=False)], out)
    assert outside.read_bytes() == b"mine"
    assert {"link.png", "notes.txt"} < {path.name for path in out.iterdir()}


def test_a_report_that_fails_leaves_the_earlier_pictures(write_run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = [path.name for path in read([write_run()], out)[0]]

    def fail(self, content):
        raise OSError("disk full")

    path = write_run("other", metrics=None, has_rows=False)
    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report([path], out, QUICK)
    assert sorted(p.name for p in out.iterdir()) == sorted(before)


def _table_rows(page):
    """Texts of the cells, by row of the body."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = (re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows)
    return [[html.unescape(re.sub(r"<sup>.*?</sup>|<.*?>", "", cell)) for cell in row] for row in cells]
