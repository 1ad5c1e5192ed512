"""``pipeline("zero-shot-ct-classification")``: scan paths in, a score per finding out.

That of transformers for images reads 2D images only. Axes: N scans, K prompt pairs, F findings, P projected
embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Pipeline

from radtower.modeling.modeling_zero_shot import Prompts, Score, check_score, pair_scores

TASK = "zero-shot-ct-classification"


class ZeroShotCTPipeline(Pipeline):
    """Score findings nobody trained a classifier for, in CT scans, with a 3D dual tower.

    Research use only, not for diagnosis. A call takes:

    - a scan, or a list or iterator of scans: paths of a file or DICOM folder, volumes, or what else the image
      processor takes;
    - ``candidate_labels``: findings such as ``"pleural effusion"``, one or several;
    - ``prompts`` and ``score``, as :meth:`ZeroShotFindings.zero_shot` does;
    - ``batch_size``: scans at a time.

    It gives, for each scan, one dict with ``label`` and ``score`` per finding, highest score first. Findings
    do not exclude each other: scores do not sum to 1.

    Raises:
        TypeError: If the model is no dual tower of volumes.
        ValueError: If no finding is named.
    """

    model: Any  # a dual tower, as this or as remote code
    processor: Any
    _load_processor: Any = True
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not getattr(self.processor, "reads_volumes", False) or not hasattr(self.model, "pair_directions"):
            raise TypeError(
                f"the model of {TASK} must be a dual tower of volumes, got {type(self.model).__name__}. For "
                "2D images use the task zero-shot-image-classification."
            )
        self.model.processor = self.processor
        self._asked: tuple[Any, torch.Tensor] | None = None

    def _sanitize_parameters(
        self,
        candidate_labels: str | Sequence[str] | None = None,
        prompts: Prompts = "ensemble",
        score: Score = "softmax",
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            raise TypeError(
                f"{TASK} must get candidate_labels, prompts and score, got {sorted(kwargs)}. Leave them out."
            )
        if candidate_labels is None:
            return {}, {}, {}
        check_score(score)
        findings = [candidate_labels] if isinstance(candidate_labels, str) else list(candidate_labels)
        return {}, {"findings": findings, "prompts": prompts, "score": score}, {"findings": findings}

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:
        """Read and prepare one scan: ``pixel_values`` ``(1, C, Z, Y, X)``."""
        return {"pixel_values": self.processor.image_processor(input_)["pixel_values"]}

    def _forward(  # type: ignore[override]
        self,
        input_tensors: dict[str, torch.Tensor],
        *,
        findings: Sequence[str] = (),
        prompts: Prompts = "ensemble",
        score: Score = "softmax",
    ) -> dict[str, torch.Tensor]:
        if not findings:
            raise ValueError(
                'candidate_labels must name at least one finding, got none. Give ["pleural effusion"].'
            )
        vectors = self.model.encode_image(input_tensors["pixel_values"], normalize=self.model.is_cosine)
        directions = self._directions(findings, prompts)
        return {"scores": pair_scores(vectors, directions, self.model.zero_shot_scale(), score)}

    def _directions(self, findings: Sequence[str], prompts: Prompts) -> torch.Tensor:
        """``(K, F, P)``; kept for the next scans of the same question."""
        question = (tuple(findings), repr(prompts))
        if self._asked is None or self._asked[0] != question:
            self._asked = (question, self.model.pair_directions(list(findings), prompts))
        return self._asked[1]

    def postprocess(self, model_outputs: Any, *, findings: Sequence[str] = ()) -> list[dict[str, Any]]:  # type: ignore[override]
        """Sort the findings of one scan by their scores ``(1, F)``."""
        scores = model_outputs["scores"][0].tolist()
        found = [{"label": name, "score": value} for name, value in zip(findings, scores, strict=True)]
        return sorted(found, key=lambda one: -one["score"])
