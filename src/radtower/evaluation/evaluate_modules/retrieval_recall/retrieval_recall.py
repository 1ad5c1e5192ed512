"""``evaluate`` module: recall@k, median rank and mean reciprocal rank of retrieval."""

from collections.abc import Hashable, Sequence

import datasets
import evaluate
import numpy as np

from radtower.evaluation.evaluate_modules.module_values import Values, number, with_intervals
from radtower.evaluation.evaluate_modules.searched_items import searched
from radtower.evaluation.retrieval.score_ranks import rank_metric_names, rank_metrics, ranks_of_scores

_CITATION = """\
@inproceedings{voorhees1999trec,
  title={The TREC-8 question answering track report},
  author={Voorhees, Ellen M},
  booktitle={Proceedings of the Eighth Text REtrieval Conference (TREC-8)},
  pages={77--82},
  year={1999}
}
"""
_DESCRIPTION = """\
Retrieval of one right answer among many items, say the report of a scan: the share of queries whose best \
right answer is among the first k (recall@k), the median rank of that answer, and the mean of one over its \
rank (MRR). Where several items are right, such as copies of a report, the best of them counts and the \
others never push it back. A wrong item that ties with the right one stands before it, so that a model \
whose scores are all equal is not credited. Queries without a right answer are left out and counted; where \
none is left, values are None. With patient ids it adds intervals from resampled queries.
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
    recall_at_K (float or None): for every K of ks.
    median_rank (float or None): 1 is the first place.
    mrr (float or None): mean reciprocal rank.
    num_queries (int): queries that were measured.
    num_without_answer (int): queries left out, because no item is right.
    num_items (int): items searched.
    NAME_ci, ci_level, ci_method: with patient_ids; an interval is [low, high] or None.
Examples:
    >>> recall = evaluate.load("retrieval_recall")
    >>> scores = [[0.9, 0.2, 0.1], [0.8, 0.3, 0.5], [0.4, 0.4, 0.4]]
    >>> result = recall.compute(predictions=scores, references=[[0], [1, 2], [2]], ks=[1, 2])
    >>> result["recall_at_1"], result["recall_at_2"], result["median_rank"]
    (0.3333333333333333, 0.6666666666666666, 2.0)
"""


class RetrievalRecall(evaluate.Metric):
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
        names = rank_metric_names(found.ks)
        values: Values = found.sizes()
        if not len(found.scores):
            return values | dict.fromkeys(names)
        ranks = ranks_of_scores(found.scores, found.right, tolerance=0.0)

        def weighted(counts: np.ndarray) -> np.ndarray:
            return rank_metrics(ranks, counts, found.ks)

        of_all = weighted(np.ones((1, len(ranks)), dtype=np.int64))[0]
        values |= dict(zip(names, map(number, of_all), strict=True))
        return with_intervals(values, names, weighted, found.patient_ids, num_resamples, seed)
