"""Retrieval among reports: findings to impression and back, and reports with the same labels.

A gallery holds every text once: thirty copies of "No acute disease." would only push everything else down.
Axes: Q queries, G gallery, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from radtower.data.reports.pair_building import is_normal_impression
from radtower.data.reports.report_corpus import ReportTable
from radtower.evaluation.results import Direction, Provenance
from radtower.evaluation.retrieval.ranks import positives_by_key
from radtower.evaluation.retrieval.score_ranks import ranks_of_scores
from radtower.evaluation.task_scores import Metric, NothingToMeasure, TaskScores, mean_scores
from radtower.evaluation.text.scorers import TextScorer
from radtower.processing.report_text import canonical_text

RECALL_AT = (1, 5, 10)
NDCG_AT = 10
MIN_GALLERY = 2
_SIMILAR = 1e-6  # scores closer than this are a tie


@dataclass(frozen=True)
class SectionRetrieval:
    """Find the impression that belongs to findings, or the reverse, among all of the split.

    A hit is the section of the same study, one that reads the same (but for case, punctuation and list
    numbers), or one whose study has the same query. What ties with a hit stands before it.

    Args:
        table: Studies of one split.
        dataset: Name of the data.
        direction: Which section asks.
        is_abnormal_only: Leave out queries whose impression says no more than "normal": nothing in the
            findings tells one wording of "normal" from another. The gallery stays whole.
    """

    table: ReportTable
    dataset: str
    direction: Direction
    is_abnormal_only: bool = False
    name: str = field(default="retrieval", init=False)

    def score(self, scorer: TextScorer) -> TaskScores:
        """Rank the gallery for every query.

        Raises:
            NothingToMeasure: If there are fewer than two texts to choose from, or no query.
        """
        frame = self.table.with_both_sections().frame
        sections = self.direction.split("_to_")
        queries, targets = (frame[section].tolist() for section in sections)
        gallery, gallery_keys = _distinct(targets)
        hits = _hits(queries, targets, gallery_keys)
        kept = np.arange(len(frame))
        if self.is_abnormal_only:
            kept = kept[[not is_normal_impression(impression) for impression in frame["impression"]]]
        if not len(kept) or len(gallery) < MIN_GALLERY:
            which = "abnormal queries" if self.is_abnormal_only else "queries"
            raise NothingToMeasure(
                f"{self.name}, {self.direction}: {len(kept)} {which}, {len(gallery)} different texts to find"
            )
        asked, inverse = np.unique(np.array(queries, dtype=object)[kept], return_inverse=True)
        scores = scorer.score(asked.tolist(), gallery)[inverse]
        ranks = ranks_of_scores(scores, [hits[row] for row in kept])
        names = [*(f"recall_at_{k}" for k in RECALL_AT), "mrr"]
        values = np.stack([*(ranks <= k for k in RECALL_AT), 1 / ranks], axis=1).astype(np.float64)
        note = f"{len(gallery)} distinct {sections[1]} texts in the gallery; ties count against the model"
        protocol = "equal texts are hits"
        if self.is_abnormal_only:
            protocol += "; queries with an abnormal impression"
        return TaskScores(
            task=self.name,
            provenance=Provenance(
                dataset=self.dataset,
                class_set="none",
                label_source="sections of the report",
                protocol=protocol,
            ),
            metrics=tuple(Metric(name=name, n=len(kept), note=note) for name in names),
            patient_ids=frame["patient_id"].to_numpy()[kept],
            weighted=mean_scores(values),
            direction=self.direction,
        )


@dataclass(frozen=True)
class LabelRetrieval:
    """nDCG@10 of whole reports, graded by the overlap of their labels.

    The gain of a report is the Jaccard index of its labels with the query's, 1 where neither has any. The
    query itself and reports that read the same are not in its gallery. Ties are sorted worst first.

    Args:
        table: Studies of one split; those with an unknown label are left out.
        dataset: Name of the data.
        class_set: Name of the labels.
        label_source: Who gave them.
    """

    table: ReportTable
    dataset: str
    class_set: str
    label_source: str
    name: str = field(default="label retrieval", init=False)

    def score(self, scorer: TextScorer) -> TaskScores:
        """Rank the other reports for every report.

        Raises:
            NothingToMeasure: If fewer than two reports have all labels known.
        """
        known = self.table.rows(
            (self.table.labels >= 0).all(axis=1) & (self.table.frame["report"] != "").to_numpy()
        )
        reports = known.frame["report"].tolist()
        gallery, keys = _distinct(reports)
        if len(gallery) < MIN_GALLERY:
            raise NothingToMeasure(f"{self.name}: {len(gallery)} different reports with all labels known")
        forms = list(map(canonical_text, reports))
        first = {form: row for row, form in reversed(list(enumerate(forms)))}
        labels = known.labels == 1
        gains = _jaccard(labels, labels[[first[key] for key in keys]])
        gains[np.array([[form == key for key in keys] for form in forms])] = np.nan
        scores = scorer.score(reports, gallery)
        values = np.array([ndcg(*row, NDCG_AT) for row in zip(scores, gains, strict=True)])
        chance = float(np.mean([_expected_ndcg(row, NDCG_AT) for row in gains]))
        note = f"{len(gallery)} distinct reports in the gallery; a random order gives {chance:.3f}"
        return TaskScores(
            task=self.name,
            provenance=Provenance(
                dataset=self.dataset,
                class_set=self.class_set,
                label_source=self.label_source,
                protocol="reports with the same labels, graded by overlap",
            ),
            metrics=(Metric(name=f"ndcg_at_{NDCG_AT}", n=len(reports), note=note),),
            patient_ids=known.frame["patient_id"].to_numpy(),
            weighted=mean_scores(values[:, None]),
        )


def ndcg(scores: np.ndarray, gains: np.ndarray, k: int) -> float:
    """Return the normalized discounted cumulative gain of the first k.

    Args:
        scores: ``(G,)``; scores that differ by rounding tie, and the smaller gain comes first.
        gains: ``(G,)`` from 0; NaN is not in the gallery.
        k: Number of places.

    Returns:
        In [0, 1]; NaN where no gain is above 0.
    """
    is_there = np.isfinite(gains)
    scores, gains = scores[is_there], gains[is_there]
    scale = max(float(np.abs(scores).max(initial=0.0)), 1e-12)
    order = np.lexsort((gains, -np.round(scores / scale / _SIMILAR)))[:k]
    discounts = 1 / np.log2(np.arange(2, len(order) + 2))
    best = float(np.sort(gains)[::-1][:k] @ discounts)
    return float(gains[order] @ discounts) / best if best > 0 else float("nan")


def _expected_ndcg(gains: np.ndarray, k: int) -> float:
    present = gains[np.isfinite(gains)]
    discounts = 1 / np.log2(np.arange(2, min(k, len(present)) + 2))
    best = float(np.sort(present)[::-1][:k] @ discounts)
    return float(present.mean() * discounts.sum()) / best if best > 0 else 0.0


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """One text per canonical form, in order, and the forms."""
    by_key: dict[str, str] = {}
    for text in texts:
        by_key.setdefault(canonical_text(text), text)
    return list(by_key.values()), list(by_key)


def _hits(queries: Sequence[str], targets: Sequence[str], gallery_keys: Sequence[str]) -> list[np.ndarray]:
    """Gallery rows that answer each query: the targets of all studies with the same query."""
    asked = [canonical_text(query) for query in queries]
    answers: dict[str, set[str]] = {}
    for query, target in zip(asked, targets, strict=True):
        answers.setdefault(query, set()).add(canonical_text(target))
    places = dict(zip(gallery_keys, positives_by_key(gallery_keys, gallery_keys), strict=True))
    return [np.concatenate([places[key] for key in sorted(answers[query])]) for query in asked]


def _jaccard(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    both = left.astype(np.float64) @ right.T
    either = left.sum(axis=1)[:, None] + right.sum(axis=1)[None] - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
