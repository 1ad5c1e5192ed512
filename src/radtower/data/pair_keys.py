"""What makes two volumes the same for a contrastive loss: one report, or one study.

Axes: N volumes, K keys.
"""

import hashlib

import pandas as pd
import torch

from radtower.processing.report_text import report_sha256

KEY_COLUMNS = ("report", "study_id")


def pair_keys(studies: pd.DataFrame) -> torch.Tensor:
    """Hash the report and the study of each volume: ``(N, 2)`` int64, never 0.

    Two volumes that agree in a column must not be pushed apart: copies of a report, as most normal ones are,
    and two reconstructions of one study.

    Args:
        studies: Rows of a manifest, with ``report`` and ``study_id``.
    """
    pairs = zip(studies["report"], studies["study_id"], strict=True)
    keys = [keys_of_study(report, str(study)) for report, study in pairs]
    return torch.tensor(keys, dtype=torch.int64).reshape(-1, len(KEY_COLUMNS))


def keys_of_study(report: str, study_id: str | None) -> tuple[int, int]:
    """Hash one report and one study; 0 for a study that is None: it is then like no other."""
    study = 0 if study_id is None else _number(hashlib.sha256(study_id.encode()).hexdigest())
    return _number(report_sha256(report)), study


def _number(digest: str) -> int:
    # 63 bits: positive, and 0 would say that there is no key.
    return int(digest[:16], 16) >> 1 or 1
