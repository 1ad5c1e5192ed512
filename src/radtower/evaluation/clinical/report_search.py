"""Which reports a dual tower finds for its scans, among reports that all differ.

Axes: N volumes, G different reports, P projected embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs
from radtower.evaluation.retrieval.top_k import top_k
from radtower.processing.report_text import report_sha256


@dataclass(frozen=True)
class FoundReports:
    """The reports found for each volume, the most similar first.

    Args:
        gallery: ``(G,)`` volumes, the first one with each report: what was searched.
        rows: ``(N, K)`` rows of ``gallery``.
    """

    gallery: np.ndarray
    rows: np.ndarray

    @property
    def volumes(self) -> np.ndarray:
        """``(N, K)`` volumes whose report was found."""
        found: np.ndarray = self.gallery[self.rows]
        return found


def find_reports(pairs: EmbeddedPairs, ks: Sequence[int]) -> FoundReports:
    """Search every report once, however many volumes have it: K answers are then K different reports.

    Args:
        pairs: Vectors and studies.
        ks: Numbers of reports wanted; K is the largest one that there are reports for.
    """
    hashes = [report_sha256(report) for report in pairs.studies["report"]]
    gallery = np.array(list(dict(zip(reversed(hashes), reversed(range(len(hashes))), strict=True)).values()))
    gallery.sort()
    k = max(1, *(k for k in (1, *ks) if k <= len(gallery)))
    found = top_k(pairs.images, pairs.reports[torch.from_numpy(gallery)], k, similarity=pairs.similarity)
    return FoundReports(gallery, found.rows)
