"""RadEval's metrics of report texts, by pair: BLEU, ROUGE, RadGraph, CheXbert, GREEN and others.

Needs the extra ``radeval``; only this file imports it. RadEval looks for a list of sentence ends on the
network when it is imported, and does without. What it prints goes to stderr.
Source: Delbrouck et al., RadEval (EMNLP 2025, demonstrations), https://github.com/jbdel/RadEval.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from typing import Any

import numpy as np


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep stdout for results, and the filters of warnings as they are: RadEval turns all of them off."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        yield


with _quietly():
    import radeval

# Release 2.2.1 imports parts of itself by the name it had before, which only a file system that ignores case
# finds: RadGraph and what builds on it.
sys.modules.setdefault("RadEval", radeval)

SOURCE = f"text of the reports, by RadEval {version('radeval')}"


class RadEvalScorer:
    """Scores found reports against true ones.

    Everything is loaded here, before anything long is done.

    Args:
        metrics: Names that :func:`checked_text_metrics` allows.

    Raises:
        OSError: If a metric cannot be loaded.
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self._scorers = {name: _loaded(name) for name in metrics}

    def __call__(self, found: Sequence[str], true: Sequence[str]) -> dict[str, np.ndarray]:
        """Score N reports.

        Args:
            found: N texts.
            true: N texts.

        Returns:
            By name of the number ``(N,)`` float64, NaN where RadEval gives none. A metric may give several:
            ``rouge`` gives ``rouge1``, ``rouge2`` and ``rougeL``.

        Raises:
            ValueError: If a metric gives another number of values.
        """
        scores: dict[str, np.ndarray] = {}
        for name, scorer in self._scorers.items():
            with _quietly():
                given = scorer(refs=list(true), hyps=list(found))
            for key, values in given.items():
                scores[key] = np.array(values, dtype=np.float64)
                if scores[key].shape != (len(true),):
                    raise ValueError(
                        f"RadEval must give {len(true)} values of {key}, got shape {scores[key].shape}. "
                        f"Leave {name} out with this release of RadEval."
                    )
        return scores


def _loaded(name: str) -> Any:
    try:
        with _quietly():
            return radeval.RadEval(metrics=[name], per_sample=True, show_progress=False)
    except Exception as error:  # weights that cannot be downloaded, libraries that do not fit
        raise OSError(
            f"RadEval must be able to load {name}, got {type(error).__name__}. Most of its metrics download "
            "weights first; leave it out, or find the cause in RadEval itself."
        ) from error
