"""Findings nobody trained a classifier for, scored by sentences with and without them.

Axes in this file: N scans, M texts, P projected embedding, F findings.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .llm_biencoder.modeling_text_inputs import as_texts

# Sentences with and without the finding; a zero-shot score is the contrast of the two. Sources: CT-CLIP
# (arXiv 2403.17834) for "is present", the GreenRFM code for the others.
PROMPT_PAIRS = {
    "there_is": ("There is {finding}.", "There is no {finding}."),
    "is_present": ("{finding} is present.", "{finding} is not present."),
    "compatible_with": (
        "Findings are compatible with {finding}.",
        "Findings are not compatible with {finding}.",
    ),
    "not": ("{finding}.", "not {finding}."),
}


class ZeroShotFindings:
    """Zero-shot scoring, for a dual tower with ``encode_image``, ``encode_text`` and ``logit_scale``."""

    encode_image: Any
    encode_text: Any
    logit_scale: Any

    @torch.no_grad()
    def finding_directions(self, findings: str | Sequence[str], prompts: str = "ensemble") -> torch.Tensor:
        """Embedding of "present" minus embedding of "absent", per finding, averaged over prompt pairs.

        Args:
            findings: One phrase or several, to put into the prompts.
            prompts: A key of ``PROMPT_PAIRS``, or ``"ensemble"`` for all of them.

        Returns:
            ``(F, P)``; its product with a unit image vector is the margin of the pair.

        Raises:
            KeyError: If ``prompts`` names no prompt pair.
            ValueError: If there is no finding, or one is blank.
        """
        findings = as_texts(findings)
        blank = [position for position, finding in enumerate(findings) if not finding.strip()]
        if blank or not findings:
            raise ValueError(
                f"findings must be named, got {len(findings)} with blanks at {blank}. Name each."
            )
        if prompts != "ensemble" and prompts not in PROMPT_PAIRS:
            raise KeyError(
                f"prompts must be 'ensemble' or one of {sorted(PROMPT_PAIRS)}, got {prompts!r}. Choose one."
            )
        pairs = list(PROMPT_PAIRS.values()) if prompts == "ensemble" else [PROMPT_PAIRS[prompts]]
        sentences = [
            _capitalize(template.format(finding=finding))
            for pair in pairs
            for template in pair
            for finding in findings
        ]
        embeds = self.encode_text(sentences).unflatten(0, (len(pairs), 2, len(findings)))
        return (embeds[:, 0] - embeds[:, 1]).mean(dim=0)

    def zero_shot(
        self, images: Any, findings: str | Sequence[str], prompts: str = "ensemble", **kwargs: Any
    ) -> torch.Tensor:
        """Score findings nobody trained a classifier for.

        The softmax over "present" and "absent" is calibrated by nothing: rank with it, do not diagnose.

        Args:
            images: See :meth:`encode_image`.
            findings: Phrases such as ``"pleural effusion"``.
            prompts: See :meth:`finding_directions`.
            **kwargs: For the image processor.

        Returns:
            ``(N, F)`` in [0, 1].
        """
        margins = self.encode_image(images, **kwargs) @ self.finding_directions(findings, prompts).T
        with torch.no_grad():
            return torch.sigmoid(self.logit_scale() * margins)


def _capitalize(sentence: str) -> str:
    """Upper-case the first letter alone: ``str.capitalize`` would spoil "CT"."""
    return sentence[:1].upper() + sentence[1:]
