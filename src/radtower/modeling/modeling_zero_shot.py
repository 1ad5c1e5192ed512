"""Findings nobody trained a classifier for, scored by sentences with and without them.

Axes in this file: N scans, M texts, P projected embedding, F findings, K prompt pairs.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F

from .llm_biencoder.modeling_encode_batches import in_eval_mode
from .llm_biencoder.modeling_text_inputs import TOKENIZER_LOCK, TokenRow, as_texts, pad_rows

# Sentences with and without the finding; a zero-shot score is the contrast of the two. Sources: CT-CLIP
# (arXiv 2403.17834) for "is present", the code of arXiv 2509.13175 for "seed", of GreenRFM for the others.
PROMPT_PAIRS = {
    "there_is": ("There is {finding}.", "There is no {finding}."),
    "is_present": ("{finding} is present.", "{finding} is not present."),
    "compatible_with": (
        "Findings are compatible with {finding}.",
        "Findings are not compatible with {finding}.",
    ),
    "not": ("{finding}.", "not {finding}."),
    "seed": ("{finding}.", ""),
}
# The pairs of "ensemble". That of the seed is none of them: an empty text denies nothing.
ENSEMBLE = ("there_is", "is_present", "compatible_with", "not")
# What stands for the phrase: as it is, or with its first letter in lower case.
_PLACES = ("{finding}", "{finding_lower}")

PromptPair = tuple[str, str]
Prompts = str | Sequence[str | PromptPair]
Score = Literal["softmax", "mean_softmax", "margin"]


class ZeroShotFindings:
    """Zero-shot scoring, for a dual tower with ``encode_image``, ``encode_text`` and ``logit_scale``."""

    config: Any
    device: Any
    encode_image: Any
    encode_text: Any
    get_text_features: Any
    logit_scale: Any
    processor: Any
    text_model: Any

    def pair_directions(self, findings: str | Sequence[str], prompts: Prompts = "ensemble") -> torch.Tensor:
        """Embedding of "present" minus embedding of "absent", per prompt pair and finding.

        Args:
            findings: One phrase or several, to put into the prompts.
            prompts: See :func:`prompt_pairs`.

        Returns:
            ``(K, F, P)``; its product with an image vector, of unit length unless the similarity is
            ``legacy_dot``, is the margin of the pair.

        Raises:
            KeyError: If ``prompts`` names no prompt pair.
            TypeError: If an entry of ``prompts`` is neither a name nor a pair of texts.
            ValueError: If there is no finding or no pair, one is blank, a pair does not tell the two sides
                apart, or a side is empty and the tokenizer has no special token to read in its place.
        """
        findings = as_texts(findings)
        blank = [position for position, finding in enumerate(findings) if not finding.strip()]
        if blank or not findings:
            raise ValueError(
                f"findings must be named, got {len(findings)} with blanks at {blank}. Name each."
            )
        pairs = prompt_pairs(prompts)
        sentences = [
            fill_prompt(template, finding) for pair in pairs for template in pair for finding in findings
        ]
        embeds = self._embed_prompts(sentences).unflatten(0, (len(pairs), 2, len(findings)))
        return embeds[:, 0] - embeds[:, 1]

    def finding_directions(
        self, findings: str | Sequence[str], prompts: Prompts = "ensemble"
    ) -> torch.Tensor:
        """Mean of :meth:`pair_directions` over the pairs: ``(F, P)``."""
        return self.pair_directions(findings, prompts).mean(dim=0)

    def zero_shot(
        self,
        images: Any,
        findings: str | Sequence[str],
        prompts: Prompts = "ensemble",
        score: Score = "softmax",
        **kwargs: Any,
    ) -> torch.Tensor:
        """Score findings nobody trained a classifier for.

        The softmax over "present" and "absent" is calibrated by nothing: rank with it, do not diagnose.

        Args:
            images: See :meth:`encode_image`.
            findings: Phrases such as ``"pleural effusion"``.
            prompts: See :func:`prompt_pairs`.
            score: See :func:`pair_scores`.
            **kwargs: For the image processor.

        Returns:
            ``(N, F)``, in [0, 1] unless the score is ``margin``.

        Raises:
            ValueError: If there is no such score; and see :meth:`pair_directions`.
        """
        check_score(score)
        vectors = self.encode_image(images, normalize=self.is_cosine, **kwargs)
        with torch.no_grad():
            return pair_scores(
                vectors, self.pair_directions(findings, prompts), self.zero_shot_scale(), score
            )

    @property
    def is_cosine(self) -> bool:
        """Whether vectors are compared at unit length."""
        return bool(self.config.similarity == "cosine")

    def zero_shot_scale(self) -> torch.Tensor:
        """What a margin is multiplied by before the softmax, ``(1,)``.

        A tower of raw dot products was trained at temperature 1; its scale was never learned.
        """
        scale: torch.Tensor = self.logit_scale()
        return scale if self.is_cosine else torch.ones_like(scale)

    @torch.no_grad()
    def _embed_prompts(self, sentences: list[str]) -> torch.Tensor:
        """``(M, P)``, as they are compared."""
        # Where a vector depends on its batch, the prompts of other findings must not change it.
        is_alone = getattr(self.text_model.config, "depends_on_batch", False)
        said = [sentence for sentence in sentences if sentence]
        embeds = self.encode_text(said, normalize=False, batch_size=1 if is_alone else "auto")
        if len(said) < len(sentences):
            is_said = torch.tensor([bool(sentence) for sentence in sentences], device=embeds.device)
            everything = self._embed_nothing().repeat(len(sentences), 1)
            everything[is_said] = embeds
            embeds = everything
        return F.normalize(embeds, dim=-1) if self.is_cosine else embeds

    def _embed_nothing(self) -> torch.Tensor:
        """``(1, P)`` of the empty text: the special tokens, and the instruction of the processor, if any."""
        tokenizer = self.processor.tokenizer
        words = (getattr(self.processor, "instruction", None) or "").replace("{text}", "")
        with TOKENIZER_LOCK:
            ids = tokenizer(words, max_length=self.processor.max_length, truncation=True)["input_ids"]
        if not ids:
            raise ValueError(
                "a prompt may be empty only where the tokenizer puts special tokens around a text, got none "
                f"from {type(tokenizer).__name__}. Choose other prompts, such as 'not'."
            )
        inputs = pad_rows(tokenizer, [TokenRow(list(ids), None)]).to(self.device)
        model: Any = self  # what this is mixed into is a module
        with in_eval_mode(model):
            embeds: torch.Tensor = self.get_text_features(**inputs, return_dict=True).pooler_output
        return embeds.float()


def prompt_pairs(prompts: Prompts) -> list[PromptPair]:
    """Return the pairs of templates, "present" first, that ``prompts`` stands for.

    Args:
        prompts: A key of ``PROMPT_PAIRS``, ``"ensemble"``, or several: keys, and pairs of templates with
            ``{finding}`` (or ``{finding_lower}``) in place of the phrase. The second of a pair may be empty.

    Raises:
        KeyError: If there is no pair of that name.
        TypeError: If an entry is neither a name nor a pair of texts.
        ValueError: If there is none, one comes twice, or a pair does not tell the two sides apart.
    """
    entries: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    pairs = []
    for entry in entries:
        pairs += [PROMPT_PAIRS[name] for name in ENSEMBLE] if entry == "ensemble" else [_pair_of(entry)]
    if not pairs:
        raise ValueError("prompts must be at least one pair, got none. Use 'ensemble'.")
    if len(set(pairs)) < len(pairs):
        raise ValueError(
            f"prompts must be different pairs, got {len(pairs) - len(set(pairs))} of {len(pairs)} twice. "
            "Name each once; 'ensemble' holds several."
        )
    return pairs


def fill_prompt(template: str, finding: str) -> str:
    """Put the phrase of a finding into a template; a sentence that begins with it begins in upper case."""
    # "CT artifact" keeps its capitals.
    lower = finding[:1].lower() + finding[1:] if finding[1:2].islower() else finding
    sentence = template.replace("{finding_lower}", lower).replace("{finding}", finding)
    if not template.startswith(_PLACES[0][:-1]):
        return sentence  # what the template itself says stays: "not {finding}." was published so
    # The first letter alone: ``str.capitalize`` would spoil "CT".
    return sentence[:1].upper() + sentence[1:]


def pair_scores(
    images: torch.Tensor, directions: torch.Tensor, scale: torch.Tensor, score: Score = "softmax"
) -> torch.Tensor:
    """Score scans by the directions of findings.

    Args:
        images: ``(N, P)``, as the model compares them.
        directions: ``(K, F, P)``, see :meth:`ZeroShotFindings.pair_directions`.
        scale: One element, see :meth:`ZeroShotFindings.zero_shot_scale`.
        score: ``softmax`` is the softmax over the two sides, their logits averaged over the pairs;
            ``mean_softmax`` the mean over the pairs of the softmax of each, the same for one pair; ``margin``
            the mean difference of the similarities, which orders scans as ``softmax`` does and never rounds
            to 1.

    Returns:
        ``(N, F)``.

    Raises:
        ValueError: If there is no such score.
    """
    check_score(score)
    if score == "mean_softmax":
        return torch.sigmoid(scale * torch.einsum("np,kfp->nkf", images, directions)).mean(dim=1)
    margins = images @ directions.mean(dim=0).T
    return margins if score == "margin" else torch.sigmoid(scale * margins)


def check_score(score: str) -> None:
    """Refuse a score that does not exist.

    Raises:
        ValueError: If it does not.
    """
    if score not in get_args(Score):
        raise ValueError(f"score must be one of {', '.join(get_args(Score))}, got {score!r}. Choose one.")


def _pair_of(entry: Any) -> PromptPair:
    if isinstance(entry, str):
        if entry not in PROMPT_PAIRS:
            raise KeyError(
                f"prompts must be 'ensemble' or one of {sorted(PROMPT_PAIRS)}, got {entry!r}. Choose one, or "
                "give the two texts of a pair together."
            )
        return PROMPT_PAIRS[entry]
    if not isinstance(entry, Sequence) or [type(text) for text in entry] != [str, str]:
        raise TypeError(
            f"prompts must be names or pairs of two texts, got {entry!r}. "
            'Write ["There is {finding}.", "There is no {finding}."].'
        )
    present, absent = (text.strip() for text in entry)
    if not any(place in present for place in _PLACES) or present == absent:
        raise ValueError(
            "the first text of a prompt pair must hold {finding} and differ from the second, got "
            f"{[present, absent]}. Put the finding in."
        )
    return present, absent
