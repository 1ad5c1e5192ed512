import pytest

from radtower.labeling.local_llm.answer_tree import PROMPT, build_answer_tree, join_trees


def test_shared_tokens_are_read_once_and_last_tokens_never():
    tree = build_answer_tree([[5, 6, 1], [5, 6, 2, 3, 4], [5, 6, 2, 9]])
    assert tree.token_ids == (5, 6, 2, 3)
    assert tree.parents == (PROMPT, 0, 1, 2)
    assert tree.depths == (0, 1, 2, 3)
    assert tree.answers == (((1, 1),), ((1, 2), (2, 3), (3, 4)), ((1, 2), (2, 9)))


def test_a_branch_does_not_see_the_other_branch():
    tree = build_answer_tree([[5, 1, 2], [5, 3, 4, 2]])
    assert tree.token_ids == (5, 1, 3, 4)
    assert tree.depths == (0, 1, 1, 2)
    assert tree.lineages == ({0}, {0, 1}, {0, 2}, {0, 2, 3})


def test_joined_trees_keep_to_themselves():
    tree = join_trees([build_answer_tree([[5, 1], [5, 2, 2]]), build_answer_tree([[7, 8, 1], [7, 8, 3]])])
    assert tree.token_ids == (5, 2, 7, 8)
    assert tree.parents == (PROMPT, 0, PROMPT, 2)
    assert tree.lineages == ({0}, {0, 1}, {2}, {2, 3})
    assert tree.answers == (((0, 1),), ((0, 2), (1, 2)), ((3, 1),), ((3, 3),))


@pytest.mark.parametrize(
    ("sequences", "num_shared"), [([[1, 2], [1, 2]], 2), ([[1, 2], [1, 2, 3]], 2), ([[1, 2], [3, 2]], 0)]
)
def test_answers_that_cannot_be_told_apart_are_refused(sequences, num_shared):
    with pytest.raises(ValueError, match=f"got 2 of which {num_shared} first tokens agree"):
        build_answer_tree(sequences)
