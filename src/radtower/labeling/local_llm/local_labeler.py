"""What the labelers with a causal language model of this process share: the model, and reports in batches."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

from radtower.labeling.findings import FindingsSet
from radtower.labeling.local_llm.local_model import load_local_model
from radtower.labeling.report_labels import ReportLabels, label_in_batches

TOO_LONG = "too_long"


class LocalLabeler(ABC):
    """A labeler backend that answers batches of reports.

    Args:
        path: Folder, ``.gguf`` file or Hub id of a causal language model.
        findings: The list to ask about.
        dtype: Name of a floating-point type of torch; ``"auto"`` is that of the source.
        device: Of torch; None is the GPU where there is one, else the CPU.
        batch_size: Reports per call of ``label_batch``.

    Raises:
        ValueError: If ``batch_size`` is below 1, or the model cannot be loaded.
    """

    name = "llm"

    def __init__(
        self,
        path: str | os.PathLike[str],
        findings: FindingsSet,
        *,
        dtype: str,
        device: str | None,
        batch_size: int,
    ) -> None:
        if batch_size < 1:
            raise ValueError(
                f"batch_size must be at least 1, got {batch_size}. Use 1 to label one report at a time."
            )
        self.findings = findings
        self.batch_size = batch_size
        self.local = load_local_model(path, dtype=dtype, device=device)

    @property
    def model_id(self) -> str:
        """Hub id, or the last part of the local path."""
        return self.local.model_id

    @property
    def model_settings(self) -> Mapping[str, str]:
        """What the answers depend on of the model."""
        dtype = str(self.local.model.dtype).removeprefix("torch.")
        return {"weights": self.local.weights, "dtype": dtype}

    def label(self, reports: Iterable[str]) -> Iterator[tuple[int, ReportLabels]]:
        """Label normalized reports as they come; yields their positions and labels in any order."""
        return label_in_batches(reports, self.label_batch, self.findings.keys, self.batch_size)

    @abstractmethod
    def label_batch(self, reports: list[str]) -> list[ReportLabels]:
        """Label reports at once; one result per report, in order."""
