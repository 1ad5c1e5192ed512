"""Take the preference of a language model for some answers out of its probabilities.

A answers, in the order of ``Status``.
"""

from enum import StrEnum

import torch
from torch import Tensor

from radtower.labeling.findings import Status


class Calibration(StrEnum):
    """Which answers are calibrated.

    ``mentioned`` leaves the share of ``not_mentioned`` alone: for a report without content that answer is
    right, not biased, and dividing by its probability would all but forbid it. ``all`` is the method as
    published.
    """

    MENTIONED = "mentioned"
    ALL = "all"
    NONE = "none"


def calibrate(log_probabilities: Tensor, content_free: Tensor, calibration: Calibration) -> Tensor:
    """Return the probabilities of the answers, calibrated and normalized over the answers.

    Contextual calibration: each probability is divided by the one that the model gives for a report without
    content, then all are normalized. Source: Zhao et al. 2021, arXiv 2102.09690, section 5, with
    W = diag(p_cf)^-1 and b = 0. Differs from it in: ``Calibration.MENTIONED``, where the divisors are the
    content-free probabilities given that the finding is mentioned, times the number of such answers (so that
    a model without a preference is not changed), and that of ``not_mentioned`` is 1.

    Args:
        log_probabilities: ``(..., A)``, of each answer as a whole; need not be normalized.
        content_free: ``(..., A)``, the same for a report without content.
        calibration: Which answers are calibrated.

    Returns:
        ``(..., A)`` float64 in [0, 1], sum 1.
    """
    log_probabilities = log_probabilities.double()
    # A sum of logarithms: a probability of 1e-40 must not become a division by zero.
    return torch.softmax(log_probabilities - _log_divisors(content_free.double(), calibration), dim=-1)


def _log_divisors(content_free: Tensor, calibration: Calibration) -> Tensor:
    if calibration is Calibration.NONE:
        return torch.zeros_like(content_free)
    if calibration is Calibration.ALL:
        return content_free
    is_mentioned = torch.tensor([status is not Status.NOT_MENTIONED for status in Status])
    is_mentioned = is_mentioned.to(content_free.device)
    mentioned = content_free.masked_fill(~is_mentioned, -torch.inf)
    divisors = torch.log_softmax(mentioned, dim=-1) + is_mentioned.sum().log()
    return divisors.masked_fill(~is_mentioned, 0.0)
