"""Does a model tell a right statement from one with an error in it, when both look alike?

Axes: N rows, C candidates, K metrics.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from radtower.data.reports.corruption import KINDS, Corruption, corrupt_many
from radtower.data.reports.negation import flips
from radtower.data.reports.pair_building import study_rng
from radtower.data.reports.report_corpus import ReportTable
from radtower.data.reports.rewriting import rewrite
from radtower.data.reports.sentences import split_sentences
from radtower.evaluation.results import Provenance
from radtower.evaluation.text.scorers import TextScorer
from radtower.evaluation.text.task_scores import Metric, TaskScores, mean_scores

NUM_WRONG = 3  # with the right one: four candidates, chance 0.25
_TIE_TOLERANCE = 1e-6
ALL_KINDS = "all"
MIN_QUESTIONS = 10

Question = Literal["findings_impression", "report_rewrite"]


@dataclass(frozen=True)
class Item:
    """A query, its right answer, and wrong ones; ``column`` says which metric it counts for."""

    query: str
    right: str
    wrong: tuple[str, ...]
    column: int
    row: int


@dataclass(frozen=True)
class ErrorDiscrimination:
    """Pick the right one of four candidates, of which three have one error each.

    ``findings_impression``: the query is the findings, the candidates are the impression and three
    corruptions of it. ``report_rewrite``: the query is the report, the candidates are a rewrite of it (other
    words, other order) and three corruptions of the rewrite, so that the wording gives nothing away. The same
    candidates for every model.

    Metrics: ``accuracy_4way`` over errors of mixed kinds and, for the short texts of ``findings_impression``,
    over three errors of one kind; ``accuracy_pairwise``, the right one against one error of a kind, chance
    0.5. A tie is an error: a model that gives all the same score has 0. The note says what drawing lots would
    give. What has fewer than 10 questions is not measured.

    Args:
        table: Studies of one split.
        dataset: Name of the data.
        question: See above.
        seed: Of rewriting and corruption.
    """

    table: ReportTable
    dataset: str
    question: Question
    seed: int = 0
    name: str = field(default="error discrimination", init=False)

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """All questions; a study that cannot give three errors of a kind gives none of that kind."""
        return tuple(
            item
            for row, study in enumerate(self.table.frame.to_dict("records"))
            for item in self._items_of(row, study)
        )

    def score(self, scorer: TextScorer) -> TaskScores:
        """Score every question."""
        columns = self._columns
        is_right, by_lot = answers(scorer, self.items, (len(self.table), len(columns)))
        sizes = np.isfinite(is_right).sum(axis=0)
        is_right[:, sizes < MIN_QUESTIONS] = np.nan
        metrics = tuple(
            Metric(name=metric, n=int(sizes[column]), finding=kind, note=_note(by_lot[:, column], metric))
            for column, (metric, kind) in enumerate(columns)
        )
        return TaskScores(
            task=self.name,
            provenance=Provenance(
                dataset=self.dataset,
                class_set="error kinds: " + ", ".join(KINDS),
                label_source="rule-based corruption of real reports",
                protocol=self.question,
            ),
            metrics=metrics,
            patient_ids=self.table.frame["patient_id"].to_numpy(),
            weighted=mean_scores(is_right),
        )

    def _items_of(self, row: int, study: dict[Any, Any]) -> Iterator[Item]:
        rng = study_rng(study["study_id"], f"discrimination {self.question}", self.seed)
        if self.question == "findings_impression":
            query, right = study["findings"], study["impression"]
        else:
            query, right = study["report"], rewrite(study["report"], rng)
        if not query or not right:
            return
        found: dict[str, list[Corruption]] = {
            kind: corrupt_many(right, NUM_WRONG, rng, (kind,)) for kind in KINDS
        }
        # One of each kind first; every further text would have to be embedded.
        turns = [
            c
            for turn in range(NUM_WRONG)
            for kind in rng.permutation(KINDS)
            for c in found[kind][turn : turn + 1]
        ]
        wrong = {**found, ALL_KINDS: turns}
        for column, (metric, kind) in enumerate(self._columns):
            num_wanted = NUM_WRONG if metric == "accuracy_4way" else 1
            if len(wrong[kind]) >= num_wanted:
                yield Item(query, right, tuple(c.text for c in wrong[kind][:num_wanted]), column, row)

    @property
    def _columns(self) -> list[tuple[str, str]]:
        of_one_kind = KINDS if self.question == "findings_impression" else ()
        return [
            ("accuracy_4way", ALL_KINDS),
            *(("accuracy_4way", kind) for kind in of_one_kind),
            *(("accuracy_pairwise", kind) for kind in KINDS),
        ]


@dataclass(frozen=True)
class NegationSensitivity:
    """Is a sentence nearer to itself in other words than to its opposite in the same words?

    The query is a sentence ("No effusion."), the right answer says the same ("Effusion is not seen."), the
    wrong one the opposite ("Effusion is seen."). Chance is 0.5, and a tie is an error.

    Args:
        table: Studies of one split; every distinct sentence counts once, for the first study that has it.
        dataset: Name of the data.
        seed: Of the rewriting.
    """

    table: ReportTable
    dataset: str
    seed: int = 0
    name: str = field(default="negation", init=False)

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """One question per distinct sentence that can be restated and flipped."""
        found: dict[str, Item] = {}
        for row, report in enumerate(self.table.frame["report"]):
            for sentence in split_sentences(report):
                text = sentence.text
                if text.lower() in found or not flips(text):
                    continue
                said = rewrite(text, study_rng(text, "negation", self.seed))
                opposite = flips(said) if said else []
                if said and opposite:
                    found[text.lower()] = Item(text, said, (opposite[0],), 0, row)
        return tuple(found.values())

    def score(self, scorer: TextScorer) -> TaskScores:
        """Score every sentence."""
        rows = [item.row for item in self.items]
        numbered = [Item(i.query, i.right, i.wrong, 0, row) for row, i in enumerate(self.items)]
        is_right, by_lot = answers(scorer, numbered, (len(numbered), 1))
        note = _note(by_lot[:, 0], "accuracy_pairwise")
        return TaskScores(
            task=self.name,
            provenance=Provenance(
                dataset=self.dataset,
                class_set="distinct sentences",
                label_source="rule-based negation of real sentences",
                protocol="a sentence restated against its opposite",
            ),
            metrics=(Metric(name="negation_sensitivity", n=len(numbered), note=note),),
            patient_ids=self.table.frame["patient_id"].to_numpy()[rows],
            weighted=mean_scores(is_right),
        )


def answers(
    scorer: TextScorer, items: tuple[Item, ...] | list[Item], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return two ``(N, K)`` arrays: 1 where the right answer is above all others, and the same by lot.

    NaN where a row has no question. By lot, a tie of j best candidates counts 1 / j where the right one is
    among them.
    """
    is_right, by_lot = np.full(shape, np.nan), np.full(shape, np.nan)
    queries = list(dict.fromkeys(item.query for item in items))
    gallery = list(dict.fromkeys(text for item in items for text in (item.right, *item.wrong)))
    if not items:
        return is_right, by_lot
    query_rows = {text: row for row, text in enumerate(queries)}
    columns = {text: column for column, text in enumerate(gallery)}
    scores = scorer.score(queries, gallery)
    for item in items:
        row = scores[query_rows[item.query]]
        right = row[columns[item.right]]
        wrong = row[[columns[text] for text in item.wrong]]
        margin = _TIE_TOLERANCE * max(1.0, float(np.abs(row).max()))
        num_tied = int((np.abs(wrong - right) <= margin).sum())
        is_beaten = bool((wrong > right + margin).any())
        is_right[item.row, item.column] = not is_beaten and not num_tied
        by_lot[item.row, item.column] = 0.0 if is_beaten else 1 / (1 + num_tied)
    return is_right, by_lot


def _note(by_lot: np.ndarray, metric: str) -> str:
    chance = "0.25" if metric == "accuracy_4way" else "0.5"
    if not np.isfinite(by_lot).any():
        return f"chance {chance}"
    return f"chance {chance}; ties count as wrong, by lot it would be {np.nanmean(by_lot):.3f}"
