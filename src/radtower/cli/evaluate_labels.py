"""``radtower evaluate labels``: silver labels against gold."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.extras import is_installed, require
from radtower.cli.output import check_results_path, print_failures, print_json, print_table

if TYPE_CHECKING:
    from radtower.data.gold_labels import LabelPairs
    from radtower.evaluation.labels.label_evaluation import LabelEvaluation
    from radtower.evaluation.results import MetricResult, Provenance
    from radtower.labeling.findings import FindingsSet
    from radtower.labeling.findings_mapping import FindingsMapping
    from radtower.labeling.label_table import LabelTable

COLUMNS = ("auroc", "f1", "precision", "recall", "kappa", "ece")
TRAP = (
    "Trap: these look like the labels that CT-RATE released. They are the output of a model (RadBERT), not "
    "gold: what follows is the agreement of two models."
)
NO_PLOTS = "forest.png and reliability.png are left out: they need the extra 'plots'."
NO_GOLD = " (output of a model, not gold)"


class FailedReports(StrEnum):
    """What to do with the reports that the labeler failed on."""

    LEFT_OUT = "left-out"
    WRONG = "wrong"


def labels(  # noqa: PLR0913 -- one argument per flag
    silver: Annotated[Path, typer.Argument(metavar="LABELS", help="labels.parquet of radtower label.")],
    gold: Annotated[Path, typer.Argument(help="CSV or parquet: ids, and a column per finding.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Without: results.json beside LABELS.")
    ] = None,
    findings: Annotated[
        str | None, typer.Option(help="Findings set, or YAML file, of the labels. Without: as in the table.")
    ] = None,
    mapping: Annotated[
        str | None,
        typer.Option(help="Compare in another findings set: SOURCE_to_TARGET, or a YAML file."),
    ] = None,
    id_column: Annotated[str, typer.Option(help="Gold: column of report ids.")] = "study_id",
    text_column: Annotated[
        str | None,
        typer.Option(help="Gold: column of texts. Without: reports are found by id, and duplicates are not."),
    ] = None,
    patient_column: Annotated[
        str | None, typer.Option(help="Gold: column of patients, who are resampled whole.")
    ] = None,
    label_source: Annotated[str | None, typer.Option(help="Who gave the gold labels.")] = None,
    failures: Annotated[
        FailedReports, typer.Option(help="Reports that the labeler failed on: no part of it, or all wrong.")
    ] = FailedReports.LEFT_OUT,
    plots: Annotated[
        Path | None,
        typer.Option(help="Folder for forest.png and reliability.png. Without: that of the results."),
    ] = None,
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Draw none.")] = False,
    disagreements: Annotated[
        int, typer.Option(min=0, help="List the most confident ones, by report id.")
    ] = 20,
    phantom: Annotated[bool, typer.Option("--phantom", help="Say that the reports are synthetic.")] = False,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the patients.")] = 2000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Agreement of a label table with gold, with intervals; exit code 1 if a gold report is in no number."""
    _check_outputs(output, plots, no_plots)
    from radtower.data.gold_labels import GoldColumns, is_model_output, pair_labels, read_gold
    from radtower.data.model_names import without_machine_path
    from radtower.evaluation.labels.label_evaluation import LabelEvaluationOptions, evaluate_labels
    from radtower.evaluation.results import Provenance, write_results
    from radtower.labeling.findings_mapping import load_mapping
    from radtower.labeling.label_table import read_labels

    table = read_labels(silver)
    chosen = None if mapping is None else load_mapping(mapping)
    known = _findings_of(table, findings, chosen)
    truth = read_gold(gold, chosen or known, GoldColumns(id_column, text_column, patient_column))
    pairs = pair_labels(table, truth, chosen)
    source = label_source or f"labels of {gold.name}"
    is_trap = truth.is_model_output or is_model_output(source)
    provenance = Provenance(
        dataset=gold.stem,
        class_set=_class_set(len(pairs.silver.columns), known),
        label_source=source + NO_GOLD * is_trap,
        threshold_source="status of the label table",
        protocol=_protocol(table, mapping, failures),
    )
    options = LabelEvaluationOptions(
        failures="wrong" if failures is FailedReports.WRONG else "left_out",
        num_resamples=resamples,
        num_disagreements=disagreements,
        is_phantom=phantom,
        generation=table.generation_hash,
    )
    models = sorted({without_machine_path(name) for name in table.frame["model_id"].dropna()})
    output = output or _default_output(silver, ", ".join(models))
    done = evaluate_labels(pairs, provenance, ", ".join(models), options)
    write_results(done.results, output)
    pictures = [] if no_plots else _draw(done, provenance, plots or output.parent, is_quiet=json)
    if is_trap:
        typer.echo(TRAP, err=json)
    uncounted = dict.fromkeys(pairs.missing, "not in the label table")
    if failures is FailedReports.LEFT_OUT:
        uncounted |= pairs.failed
    if json:
        print_json(
            {
                "results": done.results.model_dump(mode="json"),
                "disagreements": [asdict(cell) for cell in done.disagreements],
                "not_compared": uncounted,
            }
        )
    else:
        _print(done, pairs, failures)
        _print_mapping(chosen, truth.is_mapped)
        if phantom:
            print("These are phantom results: they show that the software works.")
        print(f"Written: {', '.join(map(str, [output, *pictures]))}")
    print_failures(uncounted)
    if uncounted:
        raise typer.Exit(1)


def _check_outputs(output: Path | None, plots: Path | None, no_plots: bool) -> None:
    if plots is not None and no_plots:
        raise ValueError(f"--plots must not come with --no-plots, got {plots.name!r}. Leave one out.")
    if plots is not None:
        require("plots")
    if output is not None:
        check_results_path(output)
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)


def _default_output(silver: Path, model_id: str) -> Path:
    """Beside the label table, where the results of an evaluation of another model may lie."""
    from radtower.evaluation.results import read_results

    path = silver.with_name("results.json")
    if path.exists() and (other := read_results(path).model_id) != model_id:
        raise ValueError(
            f"--output must be given where {path.name} has results of another model, got none, and those of "
            f"{other!r} beside {silver.name}. Name another file."
        )
    return path


def _findings_of(
    table: "LabelTable", name_or_path: str | None, mapping: "FindingsMapping | None"
) -> "FindingsSet":
    """Return the set that gold is read by."""
    from radtower.labeling.findings import load_findings

    if mapping is not None:
        _check_set(table, mapping.source, "--mapping must start from the set of the labels")
        return mapping.target
    # A part of a set is called set[key,key].
    name = name_or_path or _joined(table, "findings_set").partition("[")[0]
    try:
        known = load_findings(name)
    except ValueError as error:
        if name_or_path is not None:
            raise
        raise ValueError(f"--findings must say where the findings set {name!r} is. {error}") from error
    _check_set(table, known, "--findings must name the set of the labels")
    return known


def _check_set(table: "LabelTable", findings: "FindingsSet", wanted: str) -> None:
    """Refuse a set that defines other findings: its name alone says little."""
    try:
        table.findings_in(findings)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{wanted}: {error.args[0]}") from error


def _joined(table: "LabelTable", column: str) -> str:
    return ", ".join(sorted(map(str, table.frame[column].dropna().unique())))


def _class_set(num_compared: int, findings: "FindingsSet") -> str:
    from radtower.labeling.findings import is_shipped_name_of_another

    num_findings = len(findings.keys)
    name = findings.identity if is_shipped_name_of_another(findings) else findings.name
    return name if num_compared == num_findings else f"{num_compared} of {num_findings} findings of {name}"


def _protocol(table: "LabelTable", mapping: str | None, failures: FailedReports) -> str:
    prompt = _joined(table, "prompt_version")
    parts = [
        f"labeler {_joined(table, 'labeler')}",
        f"prompt {prompt}" if prompt else "",
        f"mapping {Path(mapping).stem}" if mapping else "",
        "failed reports count as wrong" if failures is FailedReports.WRONG else "",
    ]
    return "; ".join(filter(None, parts))


def _draw(done: "LabelEvaluation", provenance: "Provenance", folder: Path, *, is_quiet: bool) -> list[Path]:
    if not is_installed("plots"):
        typer.echo(NO_PLOTS, err=is_quiet)
        return []
    from radtower.evaluation.reports.pictures.drawing import write_png
    from radtower.evaluation.reports.pictures.interval_plots import draw_forest, draw_reliability

    name = done.results.model_id
    title = f"{name} against {provenance.label_source}\n{provenance.class_set}"
    forest = draw_forest({name: done.results.metrics}, ("auroc", "f1"), title)
    pictures = [write_png(forest, folder / "forest.png")]
    if done.agreement.reliability is not None:
        curve = draw_reliability({name: done.agreement.reliability}, title)
        pictures.append(write_png(curve, folder / "reliability.png"))
    return pictures


def _print(done: "LabelEvaluation", pairs: "LabelPairs", failures: FailedReports) -> None:
    found = {(item.metric, item.finding): item for item in done.results.metrics}
    provenance = done.results.metrics[0]
    title = f"{provenance.dataset}, {provenance.class_set}: {provenance.label_source}"
    # In two tables, for a terminal; the intervals of the second are in the file.
    for columns, write in ((COLUMNS[:2], _with_interval), (COLUMNS[2:], _number)):
        shown = [name for name in columns if (f"macro_{name}", None) in found]
        rows = []
        for key in [*pairs.silver.columns, None]:
            items = [found.get((name, key) if key else (f"macro_{name}", None)) for name in shown]
            of = f"{found['auroc', key].n_positive}/{found['auroc', key].n}" if key else ""
            rows.append((key.replace("_", " ") if key else "mean of the findings", of, *map(write, items)))
        print_table(title, ("", "present", *shown), rows)
    _print_confusion(done)
    agreement, exact = done.agreement, found["exact_row", None]
    print(f"Exact rows: {_with_interval(exact)} of {exact.n} reports. 95 % intervals over patients.")
    print(
        f"Gold reports: {agreement.num_compared} compared; {agreement.num_failed} that the labeler failed on "
        f"({failures.value}); {len(pairs.missing)} not in the label table."
    )
    for key, reason in pairs.left_out.items():
        print(f"Not measured: {key} ({reason}).")
    if done.disagreements:
        cells = [
            (c.report_id, c.finding, c.gold, c.silver, "-" if c.score is None else f"{c.score:.3f}")
            for c in done.disagreements
        ]
        heads = ("report", "finding", "gold", "silver", "score")
        print_table("Most confident disagreements", heads, cells, is_numeric=False)


def _print_mapping(mapping: "FindingsMapping | None", is_gold_mapped: bool) -> None:
    if is_gold_mapped:
        print("Gold is in the source set of the mapping, and was mapped as the labels were.")
    for note in () if mapping is None else mapping.notes:
        print(f"Mapping: {note}.")


def _print_confusion(done: "LabelEvaluation") -> None:
    """Summed, for a terminal; every finding has its own in the file."""
    tables = list(done.agreement.confusion.values())
    total = sum(tables[1:], start=tables[0])
    heads = ("gold", *(str(state).replace("_", " ") for state in total.columns))
    rows = [(str(state).replace("_", " "), *map(str, cells)) for state, *cells in total.itertuples()]
    print_table("Gold (rows) and label (columns), all findings together", heads, rows)


def _number(item: "MetricResult | None") -> str:
    if item is None:
        return "-"
    return "undefined" if item.value is None else f"{item.value:.3f}"


def _with_interval(item: "MetricResult | None") -> str:
    if item is None or item.value is None:
        return _number(item)
    return f"{_number(item)} ({item.ci_low:.3f}-{item.ci_high:.3f})"
