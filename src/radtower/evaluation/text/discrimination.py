"""Does a model tell a right statement from one with an error in it, when both look alike?

Rules leave traces: "abnormal" texts are more often the wrong ones, and a corrupted sentence may read oddly. A
model can use them without reading the query, so ``QueryControl`` asks the same with another study's query.

Axes: N rows, C candidates, K metrics.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from radtower.data.reports.corruption import KINDS, Corruption, corrupt_many
from radtower.data.reports.negation import flips
from radtower.data.reports.pair_building import study_rng
from radtower.data.reports.report_corpus import ReportTable
from radtower.data.reports.rewriting import rewrite
from radtower.evaluation.results import Provenance
from radtower.evaluation.task_scores import Metric, NothingToMeasure, TaskScores, mean_scores
from radtower.evaluation.text.questions import Item, answers, tie_note
from radtower.evaluation.text.scorers import TextScorer
from radtower.processing.report_sentences import split_sentences
from radtower.processing.report_text import canonical_text

NUM_WRONG = 3  # with the right one: four candidates, chance 0.25
ALL_KINDS = "all"
MIN_QUESTIONS = 10
_NUM_TRIES = 8

Question = Literal["findings_impression", "report_rewrite"]


@dataclass(frozen=True)
class ErrorDiscrimination:
    """Pick the right one of four candidates, of which three have one error each.

    ``findings_impression``: the query is the findings, the candidates are the impression and three
    corruptions of it. ``report_rewrite``: the query is the report, the candidates are a rewrite of it (other
    words, other order) and three corruptions of the rewrite. The same candidates for every model. A right
    answer that several studies share is asked for the first of them alone: else one guess at "No acute
    disease." would count fifty times.

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
        made: list[Item] = []
        asked: set[str] = set()
        for row, study in enumerate(self.table.frame.to_dict("records")):
            items = list(self._items_of(row, study))
            forms = {canonical_text(item.right) for item in items}  # one, or none without a question
            if not forms & asked:
                made += items
                asked |= forms
        return tuple(made)

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Metric and error kind of each column."""
        of_one_kind = KINDS if self.question == "findings_impression" else ()
        return [
            ("accuracy_4way", ALL_KINDS),
            *(("accuracy_4way", kind) for kind in of_one_kind),
            *(("accuracy_pairwise", kind) for kind in KINDS),
        ]

    def right_answers(self, scorer: TextScorer, items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
        """Return ``answers``, NaN where a column has fewer than 10 questions, and the same by lot.

        Raises:
            NothingToMeasure: If no column has 10.
        """
        found = answers(scorer, items, (len(self.table), len(self.columns)))
        too_few = np.isfinite(found[0]).sum(axis=0) < MIN_QUESTIONS
        if too_few.all():
            raise NothingToMeasure(
                f"{self.name}, {self.question}: no kind of error has {MIN_QUESTIONS} questions"
            )
        for values in found:
            values[:, too_few] = np.nan
        return found

    def provenance(self, control: str = "") -> Provenance:
        """What the questions are made of."""
        return Provenance(
            dataset=self.dataset,
            class_set="error kinds: " + ", ".join(KINDS),
            label_source="rule-based corruption of real reports",
            protocol=self.question + control,
        )

    def score(self, scorer: TextScorer) -> TaskScores:
        """Score every question."""
        is_right, by_lot = self.right_answers(scorer, self.items)
        sizes = _num_questions(self)
        metrics = tuple(
            Metric(name=metric, n=sizes[column], finding=kind, note=tie_note(by_lot[:, column], metric))
            for column, (metric, kind) in enumerate(self.columns)
        )
        return TaskScores(
            task=self.name,
            provenance=self.provenance(),
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
        for column, (metric, kind) in enumerate(self.columns):
            num_wanted = NUM_WRONG if metric == "accuracy_4way" else 1
            if len(wrong[kind]) >= num_wanted:
                yield Item(query, right, tuple(c.text for c in wrong[kind][:num_wanted]), column, row)


@dataclass(frozen=True)
class QueryControl:
    """The questions of ``ErrorDiscrimination`` with another study's query: what the candidates give away.

    ``..._other_query`` is the accuracy without the right query, chance as before; ``..._gain`` is what the
    right query adds to it, on the same rows, and 0 for a model that does not read it. Ties are drawn by lot
    in both. The gain is the number to compare models by; the accuracy alone can be had from the wording.

    Args:
        questions: What is asked.
    """

    questions: ErrorDiscrimination
    name: str = field(default="error discrimination", init=False)

    def score(self, scorer: TextScorer) -> TaskScores:
        """Score every question with its own query and with another."""
        asked = self.questions
        own = asked.right_answers(scorer, asked.items)[1]
        other = asked.right_answers(scorer, _with_other_queries(asked.items))[1]
        sizes = _num_questions(asked)
        metrics = [
            Metric(name=f"{metric}_{kind_of_number}", n=sizes[column], finding=kind, note=note)
            for kind_of_number, note in (
                ("other_query", "ties by lot"),
                ("gain", "right query minus another study's, ties by lot"),
            )
            for column, (metric, kind) in enumerate(asked.columns)
        ]
        return TaskScores(
            task=self.name,
            provenance=asked.provenance("; query of another study"),
            metrics=tuple(metrics),
            patient_ids=asked.table.frame["patient_id"].to_numpy(),
            weighted=mean_scores(np.concatenate([other, own - other], axis=1)),
        )


def _num_questions(asked: ErrorDiscrimination) -> list[int]:
    return [sum(item.column == column for item in asked.items) for column in range(len(asked.columns))]


def _with_other_queries(items: Sequence[Item]) -> list[Item]:
    """Give every question the query of the next study that has another one."""
    queries = list(dict.fromkeys(item.query for item in items))
    following = dict(zip(queries, [*queries[1:], *queries[:1]], strict=True))
    return [replace(item, query=following[item.query]) for item in items]


@dataclass(frozen=True)
class NegationSensitivity:
    """Is a sentence nearer to itself in other words than to its opposite in the same words?

    The query is a sentence ("No effusion."), the right answer says the same ("Effusion is not seen."), the
    wrong one the opposite ("Effusion is seen."). The wrong one shares at least as many words with the query,
    so that shared words do not give it away. Chance is 0.5, and a tie is an error.

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
                pair = _restatement_and_opposite(text, self.seed)
                if pair is not None:
                    found[text.lower()] = Item(text, pair[0], (pair[1],), 0, row)
        return tuple(found.values())

    def score(self, scorer: TextScorer) -> TaskScores:
        """Score every sentence.

        Raises:
            NothingToMeasure: If no sentence can be restated and flipped.
        """
        if not self.items:
            raise NothingToMeasure("negation: no sentence can be restated and turned round")
        rows = [item.row for item in self.items]
        numbered = [Item(i.query, i.right, i.wrong, 0, row) for row, i in enumerate(self.items)]
        is_right, by_lot = answers(scorer, numbered, (len(numbered), 1))
        note = tie_note(by_lot[:, 0], "accuracy_pairwise")
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


def _restatement_and_opposite(sentence: str, seed: int) -> tuple[str, str] | None:
    """Try a few restatements until one is no nearer to the sentence in words than its opposite is."""
    rng = study_rng(sentence, "negation", seed)
    for _ in range(_NUM_TRIES):
        said = rewrite(sentence, rng)
        for opposite in flips(said) if said else []:
            if said and _num_shared(sentence, opposite) >= _num_shared(sentence, said):
                return said, opposite
    return None


def _num_shared(left: str, right: str) -> int:
    words = [set(re.findall(r"\w+", text.lower())) for text in (left, right)]
    return len(words[0] & words[1])
