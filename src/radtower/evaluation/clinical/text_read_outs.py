"""Retrieved reports against true ones by their words, beside reports chosen without the scan.

Axes: N volumes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from radtower.evaluation.clinical.report_read_outs import MOST_COMMON, RANDOM, as_baseline
from radtower.evaluation.clinical.report_search import FoundReports
from radtower.evaluation.results import MetricResult, Provenance
from radtower.evaluation.retrieval.ranks import RetrievalOptions
from radtower.evaluation.task_scores import Metric, TaskScores, mean_scores

Scorer = Callable[[Sequence[str], Sequence[str]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class TextScoring:
    """How texts are compared.

    Args:
        score: N texts and the N true ones -> by name ``(N,)``, NaN where there is no score.
        source: Who scores; goes to the label source.
    """

    score: Scorer
    source: str


def measure_text_read_outs(
    found: FoundReports,
    studies: pd.DataFrame,
    scoring: TextScoring,
    most_common: str | None,
    dataset: str,
    options: RetrievalOptions | None = None,
) -> list[MetricResult]:
    """Score the first report found for each volume, and the same two baselines, with paired differences.

    A metric is the mean over volumes of the score of each, not of all texts as one. The random report is one
    draw per volume, by the seed.

    Args:
        found: Of N volumes.
        studies: N rows of the manifest.
        scoring: How texts are compared.
        most_common: The most common training report; None leaves that baseline out.
        dataset: Name of the data.
        options: Resampling of the patients, None for the usual.
    """
    options = options or RetrievalOptions()
    reports = studies["report"].to_numpy()
    drawn = np.random.default_rng(options.seed).integers(len(found.gallery), size=len(studies))
    texts = {RANDOM: reports[found.gallery[drawn]]}
    if most_common is not None:
        texts[MOST_COMMON] = np.full(len(studies), most_common, dtype=object)
    resampling = options.num_resamples, options.seed
    true = list(reports)
    provenance = Provenance(dataset=dataset, class_set="none", label_source=scoring.source, protocol="top 1")
    patients = studies["patient_id"].to_numpy()
    mine = scoring.score(list(reports[found.volumes[:, 0]]), true)
    metrics = _task(mine, patients, provenance).results(*resampling)
    for name, answers in texts.items():
        theirs = scoring.score(list(answers), true)
        note = "one draw per volume" if name == RANDOM else None
        baseline = _with_note(_task(theirs, patients, provenance), note)
        metrics += as_baseline(baseline, name).results(*resampling)
        # Where one of the two has no score, there is no pair.
        is_pair = {key: np.isfinite(mine[key]) & np.isfinite(theirs[key]) for key in mine}
        paired = [
            _task({key: np.where(is_pair[key], table[key], np.nan) for key in mine}, patients, provenance)
            for table in (mine, theirs)
        ]
        metrics += paired[0].minus(paired[1], name, *resampling)
    return metrics


def _task(scores: Mapping[str, np.ndarray], patients: np.ndarray, provenance: Provenance) -> TaskScores:
    note = "mean over volumes of the score of each; queries resampled, gallery fixed"
    return TaskScores(
        task="text of retrieved reports",
        provenance=provenance,
        metrics=tuple(
            Metric(
                name=f"report_{name}",
                n=int(np.isfinite(values).sum()),
                note=note,
                undefined_because="no report has a score",
            )
            for name, values in scores.items()
        ),
        patient_ids=patients,
        weighted=mean_scores(np.stack(list(scores.values()), axis=1)),
        direction="image_to_report",
    )


def _with_note(scores: TaskScores, note: str | None) -> TaskScores:
    added = tuple(replace(m, note="; ".join(filter(None, [note, m.note]))) for m in scores.metrics)
    return replace(scores, metrics=added)
