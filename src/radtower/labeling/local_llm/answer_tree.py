"""The tokens of a question and of its possible answers as one tree, so that shared tokens are read once.

Q nodes (tokens that a model reads), A answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PROMPT = -1  # the parent of a first token: the prompt that comes before the tree


@dataclass(frozen=True, kw_only=True)
class AnswerTree:
    """Which tokens are read after the prompt, and which probabilities make up each answer.

    The last token of an answer is predicted and never read, so it is no node.

    Args:
        token_ids: Token of each node, parents first.
        parents: Node before each node, ``PROMPT`` for a first token.
        answers: For each answer its steps: the node that is read last, and the token that must follow.
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    answers: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of nodes between the prompt and each node."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == PROMPT else depths[parent] + 1)
        return tuple(depths)

    @property
    def lineages(self) -> tuple[frozenset[int], ...]:
        """Each node with all nodes above it: what it may attend to besides the prompt."""
        lineages: list[frozenset[int]] = []
        for node, parent in enumerate(self.parents):
            above = frozenset[int]() if parent == PROMPT else lineages[parent]
            lineages.append(above | {node})
        return tuple(lineages)


def build_answer_tree(sequences: Sequence[Sequence[int]]) -> AnswerTree:
    """Build the tree of one question from the whole token sequences of question and answer.

    Whole sequences, because a tokenizer may join the end of a question with the start of an answer. What all
    of them share is the question; an answer is every token behind it, however many there are.

    Args:
        sequences: One per answer, each the question with that answer.

    Raises:
        ValueError: If one sequence begins with another one, or the sequences share no first token.
    """
    num_shared = _num_shared(sequences)
    if num_shared == 0 or any(_begins_with(a, b) for a in sequences for b in sequences if a is not b):
        raise ValueError(
            f"sequences must share a question and then differ, got {len(sequences)} of which {num_shared} "
            "first tokens agree and one may begin with another. Use a tokenizer that tells the answers apart."
        )
    nodes: dict[tuple[int, ...], int] = {}
    for sequence in sequences:
        for end in range(1, len(sequence)):
            nodes.setdefault(tuple(sequence[:end]), len(nodes))
    return AnswerTree(
        token_ids=tuple(path[-1] for path in nodes),
        parents=tuple(nodes.get(path[:-1], PROMPT) for path in nodes),
        answers=tuple(
            tuple((nodes[tuple(sequence[:end])], sequence[end]) for end in range(num_shared, len(sequence)))
            for sequence in sequences
        ),
    )


def join_trees(trees: Sequence[AnswerTree]) -> AnswerTree:
    """Put trees side by side behind one prompt; the answers come in the order of the trees."""
    token_ids: list[int] = []
    parents: list[int] = []
    answers: list[tuple[tuple[int, int], ...]] = []
    for tree in trees:
        start = len(token_ids)
        token_ids += tree.token_ids
        parents += [PROMPT if parent == PROMPT else parent + start for parent in tree.parents]
        answers += [tuple((node + start, token) for node, token in steps) for steps in tree.answers]
    return AnswerTree(token_ids=tuple(token_ids), parents=tuple(parents), answers=tuple(answers))


def _num_shared(sequences: Sequence[Sequence[int]]) -> int:
    shared = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        shared += 1
    return shared


def _begins_with(sequence: Sequence[int], other: Sequence[int]) -> bool:
    return list(sequence[: len(other)]) == list(other)
