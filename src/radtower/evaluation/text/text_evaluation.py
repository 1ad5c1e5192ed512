"""All text tasks of a report table, on a model and its baselines, in one run and on the same rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from radtower.data.manifest import Split
from radtower.data.reports.report_corpus import ReportTable
from radtower.evaluation.results import MetricResult, Results
from radtower.evaluation.task_scores import NothingToMeasure, TaskScores
from radtower.evaluation.text.discrimination import (
    ErrorDiscrimination,
    NegationSensitivity,
    QueryControl,
    Question,
)
from radtower.evaluation.text.linear_probe import LinearProbe
from radtower.evaluation.text.retrieval_tasks import LabelRetrieval, SectionRetrieval
from radtower.evaluation.text.scorers import EmbeddingScorer, TextScorer

TextTask = (
    SectionRetrieval | LabelRetrieval | ErrorDiscrimination | QueryControl | NegationSensitivity | LinearProbe
)
TASK_NAMES = ("retrieval", "label retrieval", "error discrimination", "negation", "linear probe")
MIN_STUDIES = 2


@dataclass(frozen=True)
class TextEvaluation:
    """``model`` also holds the paired differences to every baseline."""

    model: Results
    baselines: dict[str, Results]


def build_tasks(
    table: ReportTable,
    split: Split = "test",
    names: Sequence[str] = TASK_NAMES,
    label_source: str = "label columns of the table",
    seed: int = 0,
) -> list[TextTask]:
    """Make the tasks that a table can give.

    Sections are needed for findings <-> impression, label columns for label retrieval and the probe, and a
    train and a validation split for the probe; a task without its data is left out.

    Args:
        table: Report table with all splits.
        split: Where to measure.
        names: Tasks to make, of ``TASK_NAMES``.
        label_source: Who gave the labels.
        seed: Of the corruptions; keep 0 to compare with published numbers.

    Raises:
        ValueError: If a name is unknown, or no task is possible.
    """
    unknown = sorted(set(names) - set(TASK_NAMES))
    if unknown:
        raise ValueError(f"names must be of {', '.join(TASK_NAMES)}, got {unknown}. Choose from the list.")
    part = table.split(split)
    paired = part.with_both_sections()
    dataset = f"{', '.join(sorted(set(part.frame['source'])))} ({split})"
    class_set = f"{len(part.label_names)} labels"
    has_sections = len(paired) >= MIN_STUDIES
    has_labels = bool(part.label_names)
    has_splits = split == "test" and {"train", "validation"} <= set(table.frame["split"])
    tasks: dict[str, Callable[[], list[TextTask]]] = {
        "retrieval": lambda: [
            SectionRetrieval(paired, dataset, direction, is_abnormal_only)
            for is_abnormal_only in (False, True)
            for direction in ("findings_to_impression", "impression_to_findings")
        ],
        "label retrieval": lambda: [LabelRetrieval(part, dataset, class_set, label_source)],
        "error discrimination": lambda: [
            *(_discrimination(paired, dataset, "findings_impression", seed) if has_sections else []),
            *_discrimination(part, dataset, "report_rewrite", seed),
        ],
        "negation": lambda: [NegationSensitivity(part, dataset, seed)],
        "linear probe": lambda: [
            LinearProbe(
                table.split("train"),
                table.split("validation"),
                part,
                dataset,
                class_set,
                label_source,
            )
        ],
    }
    possible = {
        "retrieval": has_sections,
        "label retrieval": has_labels,
        "error discrimination": True,
        "negation": True,
        "linear probe": has_labels and has_splits,
    }
    made = [task for name in TASK_NAMES if name in names and possible[name] for task in tasks[name]()]
    if not made:
        raise ValueError(
            f"names must hold a task that the table can give, got {list(names)} for {len(paired)} studies "
            f"with both sections, {len(part.label_names)} labels and splits "
            f"{sorted(set(table.frame['split']))}. Choose another task."
        )
    return made


def _discrimination(table: ReportTable, dataset: str, question: Question, seed: int) -> list[TextTask]:
    asked = ErrorDiscrimination(table, dataset, question, seed)
    return [asked, QueryControl(asked)]


def evaluate_text(
    model: TextScorer,
    tasks: Sequence[TextTask],
    baselines: Sequence[TextScorer] = (),
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    is_phantom: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> TextEvaluation:
    """Measure a model and its baselines on the same questions.

    A scorer without vectors (BM25) has no linear probe. A task that the data have no question for is named in
    ``not_measured`` of the results, and the others are measured.

    Args:
        model: The model.
        tasks: From ``build_tasks``.
        baselines: What it is compared with; names must differ.
        num_resamples: Of the patients, for intervals.
        seed: Of the resampling.
        is_phantom: Whether the reports are synthetic.
        on_progress: Called with the number of (scorer, task) pairs done.

    Raises:
        NothingToMeasure: If the data have no question for any task.
        ValueError: If two scorers share a name.
    """
    names = [model.name, *(baseline.name for baseline in baselines)]
    if len(set(names)) < len(names):
        raise ValueError(f"scorers must have different names, got {names}. Rename a folder.")
    measured: dict[str, list[MetricResult]] = {name: [] for name in names}
    not_measured: list[str] = []
    for number, task in enumerate(tasks):
        try:
            for place, name, results in _measure(task, [model, *baselines], (num_resamples, seed)):
                measured[name] += results
                if on_progress is not None and name == names[place]:
                    on_progress(number * len(names) + place + 1)
        except NothingToMeasure as error:
            not_measured.append(str(error))
            if on_progress is not None:
                on_progress((number + 1) * len(names))
    if len(not_measured) == len(tasks):
        raise NothingToMeasure(f"at least one task must have a question, got: {'; '.join(not_measured)}.")

    def as_results(name: str, metrics: Iterable[MetricResult]) -> Results:
        return Results(
            model_id=name,
            model_revision=None,
            created=datetime.now(UTC),
            phantom=is_phantom,
            metrics=tuple(metrics),
            not_measured=tuple(not_measured),
        )

    everything = {name: as_results(name, metrics) for name, metrics in measured.items()}
    return TextEvaluation(everything.pop(model.name), everything)


def _measure(
    task: TextTask, scorers: Sequence[TextScorer], resampling: tuple[int, int]
) -> Iterator[tuple[int, str, list[MetricResult]]]:
    """Yield the place of a scorer and what it changes: its own results, and the model's difference to it."""
    model, *baselines = scorers
    own = _score(task, model)
    yield 0, model.name, [] if own is None else own.results(*resampling)
    for place, baseline in enumerate(baselines, start=1):
        other = _score(task, baseline)
        yield place, baseline.name, [] if other is None else other.results(*resampling)
        if own is not None and other is not None:
            yield place, model.name, own.minus(other, baseline.name, *resampling)


def _score(task: TextTask, scorer: TextScorer) -> TaskScores | None:
    if isinstance(task, LinearProbe):
        return task.score(scorer) if isinstance(scorer, EmbeddingScorer) else None
    return task.score(scorer)
