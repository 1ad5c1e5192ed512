"""Score answers with whole prompts, one per finding: plain, slow, and the measure of the fast way."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from radtower.labeling.local_llm.answer_tree import build_answer_tree


@torch.no_grad()
def score_full_prompts(
    model: PreTrainedModel, prompt: Sequence[int], questions: Sequence[Sequence[Sequence[int]]]
) -> Tensor:
    """Read the whole prompt anew for every question, all questions in one padded batch.

    A question takes one row per token path that its answers need; one row where at most one answer has
    several tokens.

    Args:
        model: Causal language model.
        prompt: Tokens before the questions, report included.
        questions: For each finding one sequence per answer: the question with that answer.

    Returns:
        ``(F, A)`` float32, logarithm of the probability of each whole answer.
    """
    rows: list[list[int]] = []
    wanted: list[tuple[int, int, int, int, int]] = []  # finding, answer, row, position, token
    for finding, sequences in enumerate(questions):
        steps = [len(answer) for answer in build_answer_tree(sequences).answers]
        paths = [list(sequence[:-1]) for sequence in sequences]
        kept = [p for p in paths if not any(len(o) > len(p) and o[: len(p)] == p for o in paths)]
        kept = [p for place, p in enumerate(kept) if p not in kept[:place]]
        for answer, (path, sequence) in enumerate(zip(paths, sequences, strict=True)):
            row = next(r for r, other in enumerate(kept) if other[: len(path)] == path)
            for end in range(len(sequence) - steps[answer], len(sequence)):
                position = len(prompt) + end - 1
                wanted.append((finding, answer, len(rows) + row, position, sequence[end]))
        rows += [[*prompt, *path] for path in kept]
    return _sum_steps(_log_probabilities(model, rows, wanted), wanted, len(questions), len(questions[0]))


def _log_probabilities(
    model: PreTrainedModel, rows: list[list[int]], wanted: list[tuple[int, int, int, int, int]]
) -> Tensor:
    """Logarithm of the probability of each wanted token."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    positions = sorted({position for *_, position, _ in wanted})
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        use_cache=False,
        logits_to_keep=torch.tensor(positions, device=model.device),
    ).logits
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    places = {position: place for place, position in enumerate(positions)}
    return torch.stack([log_probabilities[row, places[at], token] for _, _, row, at, token in wanted])


def _sum_steps(
    values: Tensor, wanted: list[tuple[int, int, int, int, int]], num_findings: int, num_answers: int
) -> Tensor:
    rows = torch.tensor([finding * num_answers + answer for finding, answer, *_ in wanted])
    sums = values.new_zeros(num_findings * num_answers)
    return sums.index_add(0, rows.to(values.device), values).view(num_findings, num_answers)
