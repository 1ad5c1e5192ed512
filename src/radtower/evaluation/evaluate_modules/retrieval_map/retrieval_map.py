"""``evaluate`` module: mean average precision of the first k items, and how many of them are right."""

from collections.abc import Hashable, Sequence

import datasets
import evaluate
import numpy as np

from radtower.evaluation.evaluate_modules.module_values import Values, number, with_intervals
from radtower.evaluation.evaluate_modules.searched_items import Searched, searched
from radtower.evaluation.retrieval.precisions import precisions_at

_CITATION = """\
@book{manning2008introduction,
  title={Introduction to Information Retrieval},
  author={Manning, Christopher D and Raghavan, Prabhakar and Sch{\\"u}tze, Hinrich},
  publisher={Cambridge University Press},
  year={2008}
}
"""
_DESCRIPTION = """\
Retrieval of all right answers among many items, say the scans with the same findings: mean average \
precision of the first k items (mAP@k) and precision@k. Average precision is the precision at each right \
item among the first k, summed, over min(k, right items): a perfect order gets 1. Who asks must not find \
itself: give the query, and other scans of its study, the score minus infinity. A wrong item that ties \
with a right one stands before it. Queries without a right answer are left out and counted; where none is \
left, values are None. With patient ids it adds intervals from resampled queries.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions (list of lists of float): scores of all items for each query, higher is better; minus infinity
        for an item that is not there for a query, such as the query itself.
    references (list of lists of int): for each query the positions of the items that are right, from 0.
    ks (list of int): numbers of items looked at, each below the number of items. Defaults to 1, 5 and 10, as
        far as there are more items.
    patient_ids (list): one per query, in order; adds 95 % intervals, all queries of a patient drawn together.
    num_resamples (int): of the bootstrap. Defaults to 2000.
    seed (int): of the bootstrap. Defaults to 0.
Returns:
    map_at_K (float or None): for every K of ks.
    map_at_K_chance (float or None): what a random order gets on average.
    precision_at_K (float or None): share of the first K items that are right.
    num_queries (int): queries that were measured.
    num_without_answer (int): queries left out, because no item is right.
    num_items (int): items searched.
    NAME_ci, ci_level, ci_method: with patient_ids; an interval is [low, high] or None.
Examples:
    >>> mean_average_precision = evaluate.load("retrieval_map")
    >>> scores = [[0.9, 0.2, 0.8], [0.8, 0.3, 0.5]]
    >>> result = mean_average_precision.compute(predictions=scores, references=[[0, 1], [2]], ks=[2])
    >>> result["map_at_2"], result["precision_at_2"]
    (0.5, 0.5)
"""


class RetrievalMap(evaluate.Metric):
    """See the description of the module."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
            reference_urls=["https://nlp.stanford.edu/IR-book/"],
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[int]],
        ks: Sequence[int] | None = None,
        patient_ids: Sequence[Hashable] | None = None,
        num_resamples: int = 2000,
        seed: int = 0,
    ) -> Values:
        found = searched(predictions, references, ks, patient_ids)
        names = [f"{name}_at_{k}" for name in ("map", "precision") for k in found.ks]
        of_chance = [f"map_at_{k}_chance" for k in found.ks]
        values = found.sizes()
        if not len(found.scores):
            return values | dict.fromkeys([*names, *of_chance])
        num_right = np.array([len(items) for items in found.right])
        measured = precisions_at(_is_right(found), num_right, found.num_there, found.ks)
        per_query = np.stack([measured[name].values for name in names], axis=1)

        def weighted(counts: np.ndarray) -> np.ndarray:
            means: np.ndarray = counts @ per_query / counts.sum(axis=1, keepdims=True)
            return means

        values |= dict(zip(names, map(number, per_query.mean(axis=0)), strict=True))
        values |= {f"map_at_{k}_chance": number(measured[f"map_at_{k}"].chance.mean()) for k in found.ks}
        return with_intervals(values, names, weighted, found.patient_ids, num_resamples, seed)


def _is_right(found: Searched) -> np.ndarray:
    """``(Q, k)`` whether the first items are right; of equal scores the wrong ones come first."""
    is_right = np.zeros(found.scores.shape, dtype=bool)
    for row, items in enumerate(found.right):
        is_right[row, items] = True
    order = np.lexsort((is_right, -found.scores), axis=1)[:, : max(found.ks)]
    return np.take_along_axis(is_right, order, axis=1)
