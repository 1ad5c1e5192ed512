"""One logistic regression per label on standardized vectors, its strength chosen on validation.

Axes: N items, E embedding, F labels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from radtower.evaluation.metrics import auroc_per_finding, macro_mean


@dataclass(frozen=True)
class LogisticProbe:
    """A fitted probe.

    Attributes:
        scaler: Standardizes vectors as those of the train split.
        models: One per label.
        strength: Inverse regularization C, the same for all labels.
    """

    scaler: StandardScaler
    models: list[LogisticRegression]
    strength: float

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Return ``(N, F)`` log-odds of ``(N, E)`` vectors."""
        scaled = self.scaler.transform(vectors)
        return np.stack([model.decision_function(scaled) for model in self.models], axis=1)

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Return ``(N, F)`` in [0, 1], which a fixed threshold such as 0.5 is meant for."""
        # In float64, which tells apart what float32 rounds to 1.
        return torch.from_numpy(self.scores(vectors)).double().sigmoid().numpy()


def fit_probe(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None,
    strengths: Sequence[float],
) -> LogisticProbe:
    """Fit on train with every strength; take the one with the best macro AUROC on validation.

    Args:
        train: Vectors ``(N, E)`` and labels ``(N, F)`` of 0, 1 or -100; both classes of each label.
        validation: Likewise, to choose on; not looked at where there is nothing to choose.
        strengths: Inverse regularizations C; of equally good ones the smallest is taken.

    Raises:
        ValueError: If there is no strength, or several and no label of validation has both classes.
    """
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths must be positive, at least one, got {list(strengths)}. Use 0.01.")
    scaler = StandardScaler().fit(train[0])
    vectors = scaler.transform(train[0])
    probes = [LogisticProbe(scaler, _fit(vectors, train[1], c), c) for c in sorted(set(strengths))]
    if len(probes) == 1:
        return probes[0]
    values = [] if validation is None else [macro_auroc_on(probe, validation) for probe in probes]
    if not values or np.isnan(values[0]):
        raise ValueError(
            f"validation must have a label with both classes to choose one of {len(probes)} strengths, got "
            f"{'no validation split' if validation is None else 'none'}. Give one strength."
        )
    return probes[int(np.argmax(values))]


def macro_auroc_on(probe: LogisticProbe, split: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the mean AUROC over the labels where it is defined; NaN if it is for none."""
    return macro_mean(auroc_per_finding(probe.scores(split[0]), split[1])).value


def _fit(vectors: np.ndarray, labels: np.ndarray, strength: float) -> list[LogisticRegression]:
    models = []
    for column in labels.T:
        known = column >= 0
        model = LogisticRegression(C=strength, max_iter=200)
        with warnings.catch_warnings():
            # Weakly regularized fits of separable labels do not converge; validation judges them.
            warnings.simplefilter("ignore", ConvergenceWarning)
            models.append(model.fit(vectors[known], column[known]))
    return models
