"""Label reports with a causal language model that scores the words of the answer instead of writing them."""

import os
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from radtower.labeling.findings import FindingsSet, Status
from radtower.labeling.local_llm.calibration import Calibration, calibrate
from radtower.labeling.local_llm.full_prompts import score_full_prompts
from radtower.labeling.local_llm.local_labeler import TOO_LONG, LocalLabeler
from radtower.labeling.local_llm.scoring_prompt import (
    SCORING_VERSION,
    build_scoring_prompt,
    encode_report,
)
from radtower.labeling.local_llm.shared_prefix import SharedPrefixScorer
from radtower.labeling.report_labels import ReportLabels

CONTENT_FREE_REPORTS = ("N/A", "[MASK]", "")  # those of Zhao et al. 2021, section 5
_PROBE = "Small right effusion. No nodule."
# Largest difference between logarithms of probabilities of the fast way and of whole prompts. Rounding makes
# 1e-5 in float32 (SmolLM2-135M), and logits of 16 bits have steps of 0.1; a mask that is ignored makes 2.7.
_TOLERANCE_FLOAT32, _TOLERANCE_HALF = 1e-3, 0.5


class ScoringLabeler(LocalLabeler):
    """A causal language model of this process behind the backend interface of the labeler.

    For each finding the four statuses are scored as whole words, after calibration against a report without
    content: ``status`` is the most probable one and ``score`` the probability of ``present`` among the four.
    Nothing is generated, so there is no evidence, and equal reports get equal scores. A report that does not
    fit into the context of the model is failed as ``too_long`` and never cut.

    At the start the fast way is compared with whole prompts on a short report, because a mask or a cache that
    a model ignores would give wrong numbers in silence.

    Args:
        path: Folder, ``.gguf`` file or Hub id of a causal language model.
        findings: The list to ask about.
        dtype: Name of a floating-point type of torch; ``"auto"`` is that of the source.
        device: Of torch; None is the GPU where there is one, else the CPU.
        batch_size: Reports per pass. It does not change what comes out, but for rounding.
        calibration: Which statuses are calibrated; a value of ``Calibration``.

    Raises:
        ValueError: If the model, read with a shared prefix, does not agree with itself, ``batch_size`` is
            below 1, or there is no such calibration.
    """

    prompt_version: str | None = SCORING_VERSION

    def __init__(
        self,
        path: str | os.PathLike[str],
        findings: FindingsSet,
        *,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int = 4,
        calibration: str = Calibration.MENTIONED,
    ) -> None:
        if calibration not in list(Calibration):
            raise ValueError(
                f"calibration must be one of {', '.join(Calibration)}, got {calibration!r}. "
                "Leave it out for the default."
            )
        super().__init__(path, findings, dtype=dtype, device=device, batch_size=batch_size)
        self.calibration = Calibration(calibration)
        self.prompt = build_scoring_prompt(self.local.tokenizer, findings)
        self.scorer = SharedPrefixScorer(self.local.model, self.prompt)
        self._check_scorer()

    @property
    def settings(self) -> Mapping[str, str | int | float | bool | None]:
        """What the scores depend on besides the findings set."""
        return {
            "mode": "score",
            **self.model_settings,
            "prompt_sha256": self.prompt.sha256,
            "calibration": str(self.calibration),
        }

    def label_batch(self, reports: list[str]) -> list[ReportLabels]:
        """Label reports in one pass; one result per report, in order."""
        ids = [encode_report(self.local.tokenizer, report) for report in reports]
        fitting = [place for place, report in enumerate(ids) if self._fits(len(report))]
        labels = [ReportLabels.failed(self.findings.keys, TOO_LONG) for _ in reports]
        if fitting:
            scores = self.scorer.log_probabilities([ids[place] for place in fitting])
            probabilities = calibrate(scores, self._content_free, self.calibration).cpu()
            for place, row in zip(fitting, probabilities, strict=True):
                labels[place] = self._labels(row, len(ids[place]))
        return labels

    def _labels(self, probabilities: Tensor, num_report_tokens: int) -> ReportLabels:
        """Name the states of one report; ``probabilities`` (F, A)."""
        statuses = [list(Status)[column] for column in probabilities.argmax(dim=1).tolist()]
        present = probabilities[:, list(Status).index(Status.PRESENT)].tolist()
        keys = self.findings.keys
        return ReportLabels(
            status=dict(zip(keys, statuses, strict=True)),
            score=dict(zip(keys, present, strict=True)),
            evidence=dict.fromkeys(keys),
            # What a pass over this report reads; the head is read once for all.
            tokens_in=num_report_tokens + len(self.prompt.tail) + len(self.prompt.tree.token_ids),
            tokens_out=0,
            cost_usd=0.0,
        )

    @cached_property
    def _content_free(self) -> Tensor:
        """``(F, A)``: logarithm of the mean probability over the reports without content."""
        reports = [encode_report(self.local.tokenizer, report) for report in CONTENT_FREE_REPORTS]
        scores = torch.cat([self.scorer.log_probabilities([report]) for report in reports]).double()
        # Among the four words first: a report that makes all of them likely shall not outweigh the others.
        return torch.log_softmax(scores, dim=-1).exp().mean(dim=0).log()

    def _fits(self, num_report_tokens: int) -> bool:
        limit = self.local.max_length
        return limit is None or num_report_tokens + self.prompt.num_tokens_around <= limit

    def _check_scorer(self) -> None:
        report = encode_report(self.local.tokenizer, _PROBE)
        if not self._fits(len(report)):
            raise ValueError(
                "path must be a model that can read a report behind a prompt of "
                f"{self.prompt.num_tokens_around} tokens, got a limit of {self.local.max_length}. "
                "Take a model with a longer context, or fewer findings."
            )
        plain = [*self.prompt.head, *report, *self.prompt.tail]
        ends = [0, -1]  # the last question stands behind all others and must see none of them
        fast = self.scorer.log_probabilities([report])[0, ends]
        questions = [self.prompt.questions[end] for end in ends]
        slow = score_full_prompts(self.local.model, plain, questions)
        difference = float((fast - slow).abs().max())
        tolerance = _TOLERANCE_FLOAT32 if self.local.model.dtype is torch.float32 else _TOLERANCE_HALF
        if not difference <= tolerance:  # NaN is not, either
            raise ValueError(
                "path must be a model whose attention obeys a mask over a shared prefix, got log "
                f"probabilities that differ by {difference:.2g} from those of a whole prompt. "
                "Take another model, or serve this one and use the backend 'endpoint'."
            )
