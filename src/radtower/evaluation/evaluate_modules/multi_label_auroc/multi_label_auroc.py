"""``evaluate`` module: AUROC of several findings at once, per finding and as their mean."""

from collections.abc import Hashable, Sequence

import datasets
import evaluate
import numpy as np

from radtower.evaluation.evaluate_modules.module_values import (
    Values,
    bounds,
    check_patients,
    matrix,
    number,
    said_of,
)
from radtower.evaluation.metrics import auroc_per_finding, bootstrap_auroc, macro_mean

_CITATION = """\
@article{hanley1982meaning,
  title={The meaning and use of the area under a receiver operating characteristic (ROC) curve},
  author={Hanley, James A and McNeil, Barbara J},
  journal={Radiology},
  volume={143},
  number={1},
  pages={29--36},
  year={1982},
  doi={10.1148/radiology.143.1.7063747}
}
"""
_DESCRIPTION = """\
Area under the ROC curve of several findings at once: the probability that a study with the finding scores \
above a study without it, ties counted half. A finding of which only one kind of study is there has no \
such number: it is None and left out of the mean, never 0.5, and the result says how many findings the mean \
is of. Labels may be unknown. With patient ids it adds intervals from resampled patients.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions (list of lists of float): scores, one row per study and one column per finding; any real
        numbers, higher where the finding is likelier.
    references (list of lists of float): labels, likewise; 1, 0, or -100 where unknown. -1, which published
        tables use for uncertain and for not mentioned alike, is refused.
    finding_names (list of str): names of the columns; without them the findings are numbered from 0.
    patient_ids (list): one per row, in order; adds 95 % intervals, all rows of a patient drawn together.
    num_resamples (int): of the bootstrap. Defaults to 2000.
    seed (int): of the bootstrap. Defaults to 0.
Returns:
    macro_auroc (float or None): unweighted mean over the findings that are defined.
    num_defined (int): how many those are.
    num_findings (int): of how many.
    auroc (dict): by finding, float or None.
    n (dict): by finding, rows with a known label.
    n_positive (dict): by finding, rows that have it.
    macro_auroc_ci, auroc_ci, ci_level, ci_method: with patient_ids; an interval is [low, high] or None.
Examples:
    >>> auroc = evaluate.load("multi_label_auroc")
    >>> scores = [[0.9, 0.2], [0.4, 0.7], [0.6, 0.1], [0.1, 0.3]]
    >>> labels = [[1, 0], [1, 0], [0, 0], [0, -100]]
    >>> result = auroc.compute(predictions=scores, references=labels, finding_names=["nodule", "effusion"])
    >>> result["auroc"], result["macro_auroc"], result["num_defined"]
    ({'nodule': 0.75, 'effusion': None}, 0.75, 1)
"""


class MultiLabelAuroc(evaluate.Metric):
    """See the description of the module."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("float64")),
                }
            ),
            reference_urls=["https://doi.org/10.1148/radiology.143.1.7063747"],
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[float]],
        finding_names: Sequence[str] | None = None,
        patient_ids: Sequence[Hashable] | None = None,
        num_resamples: int = 2000,
        seed: int = 0,
    ) -> Values:
        scores, labels = matrix("predictions", predictions), matrix("references", references)
        areas = auroc_per_finding(scores, labels)
        check_patients(patient_ids, len(scores))
        names = _names(finding_names, len(areas))
        macro = macro_mean(areas)
        values: Values = {
            "macro_auroc": number(macro.value),
            "num_defined": macro.num_defined,
            "num_findings": macro.num_findings,
            "auroc": dict(zip(names, map(number, areas), strict=True)),
            "n": dict(zip(names, np.isin(labels, (0, 1)).sum(axis=0).tolist(), strict=True)),
            "n_positive": dict(zip(names, (labels == 1).sum(axis=0).tolist(), strict=True)),
        }
        if patient_ids is not None:
            by_finding, of_macro = bootstrap_auroc(scores, labels, patient_ids, num_resamples, seed)
            values |= {
                "macro_auroc_ci": bounds(of_macro),
                "auroc_ci": dict(zip(names, map(bounds, by_finding), strict=True)),
                **said_of(of_macro),
            }
        return values


def _names(finding_names: Sequence[str] | None, num_findings: int) -> list[str]:
    names = [str(name) for name in range(num_findings)] if finding_names is None else list(finding_names)
    if len(set(names)) != num_findings or len(names) != num_findings:
        raise ValueError(
            f"finding_names must be {num_findings} different names, one per column, got {len(names)}, of "
            f"which {len(set(names))} differ."
        )
    return names
