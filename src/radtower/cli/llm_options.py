"""Flags of ``radtower label --backend llm``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from radtower.cli.extras import register_models, require

if TYPE_CHECKING:
    from radtower.cli.labelers import Labeler
    from radtower.labeling.findings import FindingsSet


@dataclass(frozen=True, kw_only=True)
class LLMOptions:
    """Flags of ``--backend llm``; the defaults are those of the command.

    Args:
        model: Folder, ``.gguf`` file or Hub id of a causal language model.
        dtype: Name of a floating-point type of torch, or ``auto``.
        generate: Write JSON with evidence instead of scoring the words of the answer.
        batch_size: Reports per pass; None is the default of the labeler.
        device: None takes a GPU where there is one.
        max_tokens: Limit of one written reply; None is the default of the labeler.
        calibration: Which statuses are calibrated; None is the default of the labeler.

    Raises:
        ValueError: If answers that are written are to be calibrated, or those that are not have a limit.
    """

    model: str
    dtype: str = "auto"
    generate: bool = False
    calibration: str | None = None
    max_tokens: int | None = None
    batch_size: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.generate and self.calibration is not None:
            raise ValueError(
                f"--calibration must be left out with --generate, got {self.calibration!r}. "
                "Written answers have no scores to calibrate."
            )
        if self.max_tokens is not None and not self.generate:
            raise ValueError(
                f"--max-tokens must be left out without --generate, got {self.max_tokens}. "
                "Scored answers are not written."
            )

    def build(self, findings: "FindingsSet") -> "Labeler":
        """Load the model."""
        from radtower.cli.labelers import Labeler

        if self.generate or self.model.endswith(".gguf"):
            require("local-llm")
        register_models()
        given: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        if self.batch_size is not None:
            given["batch_size"] = self.batch_size
        if self.generate:
            from radtower.labeling.local_llm.generating_labeler import GeneratingLabeler

            if self.max_tokens is not None:
                given["max_new_tokens"] = self.max_tokens
            return Labeler(GeneratingLabeler(self.model, findings, **given), findings)
        from radtower.labeling.local_llm.scoring_labeler import ScoringLabeler

        if self.calibration is not None:
            given["calibration"] = self.calibration
        return Labeler(ScoringLabeler(self.model, findings, **given), findings)
