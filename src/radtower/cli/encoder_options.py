"""Flags of ``radtower label --backend encoder``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from radtower.cli.extras import register_models

if TYPE_CHECKING:
    from radtower.cli.labelers import Labeler
    from radtower.labeling.findings import FindingsSet


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Flags of ``--backend encoder``; the defaults are those of the command.

    Args:
        model: Folder or Hub id of a trained labeler, or of any multi-label text classifier.
        threshold: P(present) from which a finding counts as present.
        max_length: Tokens of a window. None takes what the model was made for.
        batch_size: Windows per pass. None goes by tokens.
        dtype: ``float32`` or ``bfloat16``; ``auto`` is float32: halving the precision must be asked for.
        device: None takes a GPU where there is one.
        skip_unmatched: Leave out labels of the model that the findings set does not have.
        trust_remote_code: Run code that comes with the model.
    """

    model: str
    threshold: float = 0.5
    max_length: int | None = None
    batch_size: int | None = None
    dtype: str = "auto"
    device: str | None = None
    skip_unmatched: bool = False
    trust_remote_code: bool = False

    def build(self, findings: "FindingsSet") -> "Labeler":
        """Load the model."""
        register_models()
        from radtower.cli.labelers import Labeler
        from radtower.labeling.encoder import EncoderLabeler

        dtype: Any = "float32" if self.dtype == "auto" else self.dtype  # the labeler refuses others
        encoder = EncoderLabeler(
            self.model,
            findings,
            max_length=self.max_length,
            threshold=self.threshold,
            batch_size="auto" if self.batch_size is None else self.batch_size,
            dtype=dtype,
            device=self.device,
            should_skip_unmatched=self.skip_unmatched,
            is_remote_code_trusted=self.trust_remote_code,
        )
        return Labeler(encoder, findings.subset(encoder.keys), notes=encoder.notes)
