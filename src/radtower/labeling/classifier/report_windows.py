"""A report -> what a model of limited length reads: windows that end where sentences end.

Axes in this file: T tokens of a window.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from radtower.processing.report_sentences import Sentence, split_sentences

NO_SENTENCE = -1
WINDOW_RULE = "sentences-1"  # a change of the rule is a new name: labels would change


@dataclass(frozen=True)
class ReportWindow:
    """Part of a report, ready to be read.

    Attributes:
        input_ids: T token ids, the special tokens of the tokenizer included.
        sentence_of: T numbers of the sentence that a token belongs to; -1 for special tokens.
    """

    input_ids: list[int]
    sentence_of: list[int]


@dataclass(frozen=True)
class WindowedReport:
    """A whole report: no token of it is left out, and none is read twice.

    Attributes:
        windows: In order; one where the report fits.
        sentences: Of the report, with their places in it.
        num_split_sentences: Sentences that are longer than a window and were cut into pieces.
    """

    windows: list[ReportWindow]
    sentences: list[Sentence]
    num_split_sentences: int

    @property
    def num_tokens(self) -> int:
        """Tokens of all windows, special ones included."""
        return sum(len(window.input_ids) for window in self.windows)


def read_in_windows(tokenizer: PreTrainedTokenizerBase, report: str, max_length: int) -> WindowedReport:
    """Cut a report into as few windows as sentences allow, of about the same length.

    The report is tokenized once and its tokens are dealt out, so that what fits is read exactly as the
    tokenizer alone would give it. A token that reaches into two sentences belongs to the later one, whose
    first word it holds.

    Args:
        tokenizer: A fast one, which knows where in the text a token comes from.
        report: Normalized text.
        max_length: Tokens of a window, special tokens included.

    Raises:
        ValueError: If ``max_length`` leaves no room beside the special tokens.
    """
    encoded = tokenizer(report, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    ids = list(encoded["input_ids"])
    is_special = list(encoded["special_tokens_mask"])
    first = next((place for place, special in enumerate(is_special) if not special), len(ids))
    last = len(ids) - next((place for place, special in enumerate(reversed(is_special)) if not special), 0)
    head, body, tail = ids[:first], ids[first:last], ids[last:]
    room = max_length - len(head) - len(tail)
    if room < 1:
        raise ValueError(
            f"max_length must be at least {len(head) + len(tail) + 1}, special tokens included, got "
            f"{max_length}. Leave it out for the length of the model."
        )
    sentences = split_sentences(report)
    ends = [sentence.end for sentence in sentences[:-1]]
    # What stands between two sentences, such as a list number, is read with the second.
    places = [bisect_right(ends, max(0, end - 1)) for _, end in encoded["offset_mapping"][first:last]]
    counts = [len(list(group)) for _, group in groupby(places)]
    marks = places if sentences else [NO_SENTENCE] * len(body)
    windows = [
        ReportWindow(
            [*head, *body[start:end], *tail],
            [*[NO_SENTENCE] * len(head), *marks[start:end], *[NO_SENTENCE] * len(tail)],
        )
        for start, end in window_bounds(counts, room)
    ]
    return WindowedReport(windows, sentences, sum(count > room for count in counts))


def window_bounds(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Deal out sentences, in order, to windows of about equal length.

    Args:
        lengths: Tokens of each sentence.
        room: Tokens of a window; a longer sentence is cut into equal pieces.

    Returns:
        First token and the one behind the last, per window. One empty window where there is no token.
    """
    pieces = [piece for length in lengths for piece in _pieces(length, room)]
    total = sum(pieces)
    share = total / max(1, -(-total // room))
    ends, size, position = [], 0, 0
    for piece in pieces:
        if size and (size + piece > room or size >= share):
            ends.append(position)
            size = 0
        size += piece
        position += piece
    ends.append(position)
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _pieces(length: int, room: int) -> list[int]:
    number = max(1, -(-length // room))
    return [length // number + (place < length % number) for place in range(number)]
