import math

import pytest
import torch
import torch.nn.functional as F

from radtower.modeling.losses import (
    cosine_similarities,
    info_nce,
    matryoshka_info_nce,
    shares_key,
)
from radtower.modeling.modeling_pair_losses import symmetric_info_nce


def _dense(queries, documents, positives, scale, is_ignored):
    """The equation in float64, one query at a time."""
    terms = []
    for row, positive in enumerate(positives.tolist()):
        cosines = [(queries[row] @ d) / (queries[row].norm() * d.norm()) for d in documents]
        exponents = [
            torch.exp(scale * cosine)
            for column, cosine in enumerate(cosines)
            if column == positive or not is_ignored[row, column]
        ]
        terms.append(torch.log(sum(exponents)) - scale * cosines[positive])
    return sum(terms) / len(terms)


def test_info_nce_matches_a_hand_computed_pair_with_a_hard_negative():
    queries = torch.tensor([[2.0, 0.0], [0.0, 3.0]])  # lengths do not matter
    documents = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    # Cosines are ((1, 0.6, -1), (0, 0.8, 0)), here scaled by 2.
    first = math.log(math.exp(2) + math.exp(1.2) + math.exp(-2)) - 2
    second = math.log(1 + math.exp(1.6) + 1) - 1.6
    loss = info_nce(queries, documents, torch.tensor([0, 1]), 2.0)
    assert loss.item() == pytest.approx((first + second) / 2)


def test_an_ignored_document_is_no_negative_and_a_positive_is_never_ignored():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    documents = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    is_ignored = torch.tensor([[True, True, False], [True, False, True]])
    first = math.log(math.exp(2) + math.exp(-2)) - 2
    loss = info_nce(queries, documents, torch.tensor([0, 1]), 2.0, is_ignored)
    assert loss.item() == pytest.approx(first / 2, rel=1e-5)  # nothing is left against the second


def test_info_nce_and_its_gradient_are_those_of_the_equation():
    torch.manual_seed(4)
    queries, documents = torch.randn(5, 6).double(), torch.randn(9, 6).double()
    positives = torch.tensor([3, 0, 8, 1, 1])
    is_ignored = torch.rand(5, 9) < 0.3
    gradients = []
    for loss in (info_nce, _dense):
        q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()
        value = loss(q, d, positives, 7.0, is_ignored)
        gradients.append((value.detach(), *torch.autograd.grad(value, (q, d))))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_info_nce_in_both_directions_is_the_loss_of_the_dual_tower():
    left, right = F.normalize(torch.randn(2, 6, 8), dim=-1)
    rows = torch.arange(6)
    both = (info_nce(left, right, rows, 20.0) + info_nce(right, left, rows, 20.0)) / 2
    torch.testing.assert_close(both, symmetric_info_nce(left, right, torch.tensor([20.0])))


@pytest.mark.parametrize("positives", [[0, 3], [-1, 0], [0], [0, 1, 2]])
def test_info_nce_refuses_positives_that_are_not_there(positives):
    got = r", ".join(map(str, positives))
    with pytest.raises(ValueError, match=rf"one of 3 documents for each of 2 queries, got \[{got}\]"):
        info_nce(torch.ones(2, 4), torch.ones(3, 4), torch.tensor(positives), 1.0)


def test_info_nce_refuses_a_mask_of_other_rows_and_vectors_of_other_width():
    with pytest.raises(ValueError, match=r"got \(3, 2\) for \(2, 3\)"):
        info_nce(torch.ones(2, 4), torch.ones(3, 4), torch.tensor([0, 1]), 1.0, torch.zeros(3, 2).bool())
    with pytest.raises(ValueError, match=r"\(D, E\), got \(2, 4\) and \(3, 5\)"):
        info_nce(torch.ones(2, 4), torch.ones(3, 5), torch.tensor([0, 1]), 1.0)
    with pytest.raises(ValueError, match=r"got \(4,\) and \(3, 4\)"):
        cosine_similarities(torch.ones(4), torch.ones(3, 4))


def test_matryoshka_is_the_weighted_sum_over_vectors_cut_and_normalized_anew():
    queries, documents = torch.randn(4, 8), torch.randn(6, 8)
    rows, mask = torch.arange(4), torch.rand(4, 6) < 0.3
    parts = [info_nce(queries[:, :n].clone(), documents[:, :n].clone(), rows, 5.0, mask) for n in (8, 3)]
    given = {"dims": (8, 3)}
    both = matryoshka_info_nce(queries, documents, rows, 5.0, mask, **given)
    torch.testing.assert_close(both, parts[0] + parts[1])
    weighted = matryoshka_info_nce(queries, documents, rows, 5.0, mask, **given, weights=(1.0, 0.25))
    torch.testing.assert_close(weighted, parts[0] + 0.25 * parts[1])


@pytest.mark.parametrize("dims", [(), (0,), (9,), (4, 4)])
def test_matryoshka_refuses_sizes_that_the_vector_has_not(dims):
    got = ", ".join(map(str, dims))
    with pytest.raises(ValueError, match=rf"between 1 and 8, got \[{got}\]"):
        matryoshka_info_nce(torch.ones(1, 8), torch.ones(1, 8), torch.tensor([0]), 1.0, dims=dims)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -0.5)])
def test_matryoshka_refuses_weights_that_do_not_fit(weights):
    with pytest.raises(ValueError, match=rf"for each of 2 dims, got \[{', '.join(map(str, weights))}\]"):
        matryoshka_info_nce(
            torch.ones(1, 8), torch.ones(1, 8), torch.tensor([0]), 1.0, dims=(8, 4), weights=weights
        )


def test_texts_share_a_key_in_any_place_and_no_key_equals_nothing():
    rows = torch.tensor([[1, 2, 0], [3, 4, 9]])
    columns = torch.tensor([[7, 1, 0], [5, 6, 9], [0, 0, 0]])
    assert shares_key(rows, columns).tolist() == [[True, False, False], [False, True, False]]
