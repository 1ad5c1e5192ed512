from itertools import pairwise

import pytest

from radtower.labeling.classifier.report_windows import NO_SENTENCE, read_in_windows, window_bounds

REPORT = "There is no nodule. 2. There is a small effusion. Describe it"


@pytest.mark.parametrize(
    ("lengths", "room", "bounds"),
    [
        ([3, 4], 7, [(0, 7)]),
        ([3, 5], 7, [(0, 3), (3, 8)]),
        ([5, 5, 5, 5], 10, [(0, 10), (10, 20)]),
        ([4, 4, 4], 10, [(0, 8), (8, 12)]),  # about equal, not full ones and a rest
        ([2, 2, 2, 2, 2, 2], 10, [(0, 6), (6, 12)]),
        ([2, 9, 1], 4, [(0, 2), (2, 5), (5, 8), (8, 12)]),  # 9 is cut into 3, 3, 3
        ([11], 4, [(0, 4), (4, 8), (8, 11)]),
        ([], 4, [(0, 0)]),
    ],
)
def test_sentences_are_dealt_out_whole(lengths, room, bounds):
    assert window_bounds(lengths, room) == bounds


def test_what_fits_is_read_as_the_tokenizer_gives_it(tiny_tokenizer):
    read = read_in_windows(tiny_tokenizer, REPORT, 64)
    (window,) = read.windows
    assert window.input_ids == tiny_tokenizer(REPORT)["input_ids"]
    assert read.num_tokens == len(window.input_ids)
    assert read.num_split_sentences == 0
    assert [sentence.text for sentence in read.sentences] == [
        "There is no nodule.",
        "There is a small effusion.",
        "Describe it",
    ]


def test_tokens_know_their_sentence_and_a_list_number_goes_with_the_next(tiny_tokenizer):
    (window,) = read_in_windows(tiny_tokenizer, REPORT, 64).windows
    offsets = tiny_tokenizer(REPORT, return_offsets_mapping=True)["offset_mapping"]
    assert window.sentence_of[0] == NO_SENTENCE  # <bos>
    for (start, end), sentence in zip(offsets[1:], window.sentence_of[1:], strict=True):
        middle = (start + end) / 2
        assert sentence == (0 if middle < 19 else 1 if middle < 49 else 2), (start, end)


def test_a_token_over_two_sentences_belongs_to_the_later_one(tiny_tokenizer):
    report = "no nodule.There is no effusion"
    (window,) = read_in_windows(tiny_tokenizer, report, 64).windows
    glued = tiny_tokenizer.tokenize(report).index(".There")
    assert window.sentence_of[1:][glued - 1 : glued + 1] == [0, 1]


@pytest.mark.parametrize("max_length", [10, 12, 19])
def test_windows_hold_every_token_once_and_end_with_sentences(tiny_tokenizer, max_length):
    ids = tiny_tokenizer(REPORT)["input_ids"]
    read = read_in_windows(tiny_tokenizer, REPORT, max_length)
    assert len(read.windows) > 1
    assert all(2 <= len(window.input_ids) <= max_length for window in read.windows)
    assert all(window.input_ids[0] == ids[0] for window in read.windows)
    assert [token for window in read.windows for token in window.input_ids[1:]] == ids[1:]
    assert read.num_tokens == len(ids) - 1 + len(read.windows)
    places = [set(window.sentence_of[1:]) for window in read.windows]
    num_shared = sum(bool(left & right) for left, right in pairwise(places))
    assert (num_shared > 0) == (read.num_split_sentences > 0)
    assert read.num_split_sentences == {10: 1, 12: 0, 19: 0}[max_length]


def test_a_report_without_a_sentence_is_read_and_has_none(tiny_tokenizer):
    read = read_in_windows(tiny_tokenizer, "12. 34.", 64)
    assert read.sentences == []
    assert set(read.windows[0].sentence_of) == {NO_SENTENCE}
    assert read.num_tokens == len(tiny_tokenizer("12. 34.")["input_ids"])


def test_refuses_windows_without_room_for_text(tiny_tokenizer):
    with pytest.raises(ValueError, match="max_length must be at least 2, special tokens included, got 1"):
        read_in_windows(tiny_tokenizer, REPORT, 1)
