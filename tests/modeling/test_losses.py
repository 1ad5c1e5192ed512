import math

import pytest
import torch
import torch.nn.functional as F

from radtower.modeling.losses import asymmetric_loss, masked_binary_cross_entropy
from radtower.modeling.modeling_pair_losses import symmetric_info_nce


def test_classification_loss_matches_a_hand_computed_case():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    labels = torch.tensor([[1, 0], [-100, 1]])
    # softplus(-x) for a present finding, softplus(x) for an absent one, nothing for the unknown.
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(-3))) / 3
    assert masked_binary_cross_entropy(logits, labels).item() == pytest.approx(expected)


def test_classification_loss_takes_a_probability_as_target():
    logits, labels = torch.tensor([[1.5, -0.7]]), torch.tensor([[0.25, -100.0]])
    expected = 0.25 * math.log1p(math.exp(-1.5)) + 0.75 * math.log1p(math.exp(1.5))
    assert masked_binary_cross_entropy(logits, labels).item() == pytest.approx(expected)


def test_classification_loss_sends_no_gradient_to_an_unknown_label():
    logits = torch.tensor([[2.0, -1.0, 0.5]], requires_grad=True)
    masked_binary_cross_entropy(logits, torch.tensor([[1.0, -100.0, 0.0]])).backward()
    # (sigmoid - target) / number of known labels
    expected = [(1 / (1 + math.exp(-2)) - 1) / 2, 0.0, 1 / (1 + math.exp(-0.5)) / 2]
    assert logits.grad[0].tolist() == pytest.approx(expected)


def test_classification_loss_of_unknown_labels_is_zero_with_zero_gradient():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = masked_binary_cross_entropy(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(2, 3))


def test_classification_loss_of_uninformative_logits_is_the_entropy_of_a_coin():
    loss = masked_binary_cross_entropy(torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 0.3], [0.0, 1.0, -100.0]]))
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("label", [-1.0, 2.0, math.nan])
def test_classification_loss_refuses_labels_that_are_no_probability(label):
    with pytest.raises(ValueError, match=rf"in \[0, 1\] or -100, got \[{label}\]"):
        masked_binary_cross_entropy(torch.zeros(1, 2), torch.tensor([[1.0, label]]))


def test_classification_loss_refuses_a_missing_finding():
    with pytest.raises(ValueError, match=r"got \(2, 3\) for logits \(2, 4\)"):
        masked_binary_cross_entropy(torch.zeros(2, 4), torch.zeros(2, 3))


def test_a_present_finding_counts_its_weight():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    labels = torch.tensor([[1, 1], [0, -100]])
    expected = (3 * math.log1p(math.exp(-2)) + 0.25 * math.log1p(math.exp(1)) + math.log1p(math.exp(0.5))) / 3
    loss = masked_binary_cross_entropy(logits, labels, positive_weight=torch.tensor([3.0, 0.25]))
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("weight", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, math.nan]])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match=rf"got \[{', '.join(map(str, weight))}\] for 2 findings"):
        masked_binary_cross_entropy(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor(weight))


def test_a_soft_target_is_not_rounded_to_the_precision_of_the_logits():
    loss = masked_binary_cross_entropy(torch.tensor([[8.0]], dtype=torch.bfloat16), torch.tensor([[0.3]]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.7 * 8 + math.log1p(math.exp(-8)), abs=1e-6)


def _asymmetric_by_hand(x, target, focus_positive, focus_negative, margin):
    p = 1 / (1 + math.exp(-x))
    q = max(p - margin, 0)
    absent = -(q**focus_negative) * math.log(1 - q)
    return target * -((1 - p) ** focus_positive) * math.log(p) + (1 - target) * absent


def test_asymmetric_loss_matches_a_hand_computed_case():
    logits, labels = (
        torch.tensor([[1.5, -0.7, 9.0], [0.4, -4.0, 0.2]]),
        torch.tensor([[1, 0, -100], [0, 0, 0.25]]),
    )
    cases = [(1.5, 1), (-0.7, 0), (0.4, 0), (-4.0, 0), (0.2, 0.25)]
    settings = {"focus_positive": 1.5, "focus_negative": 3.0, "margin": 0.1}
    expected = sum(_asymmetric_by_hand(*case, **settings) for case in cases) / 5
    assert asymmetric_loss(logits, labels, **settings).item() == pytest.approx(expected)
    # Without focus, an absent finding below the margin (p is 0.018) still costs nothing.
    only_margin = sum(_asymmetric_by_hand(*case, 0.0, 0.0, 0.1) for case in cases) / 5
    assert asymmetric_loss(logits, labels, 0.0, 0.0, 0.1).item() == pytest.approx(only_margin)
    defaults = sum(_asymmetric_by_hand(*case, 0.0, 4.0, 0.05) for case in cases) / 5
    assert asymmetric_loss(logits, labels).item() == pytest.approx(defaults)


def test_asymmetric_loss_without_asymmetry_is_cross_entropy_also_for_extreme_logits():
    logits = torch.tensor([[-200.0, -3.0, 0.5, 200.0]]).repeat(2, 1)
    labels = torch.tensor([[1.0, 0.0, 0.3, 0.0], [0.0, 1.0, -100.0, 1.0]])
    got = asymmetric_loss(logits, labels, focus_positive=0.0, focus_negative=0.0, margin=0.0)
    torch.testing.assert_close(got, masked_binary_cross_entropy(logits, labels))


@pytest.mark.parametrize("focus", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_asymmetric_loss_has_the_gradient_of_its_formula_and_is_finite(focus, margin):
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([[1.0, 0, -100, 0.5], [0, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: asymmetric_loss(x, labels, 0.5, focus, margin), logits)
    extreme = torch.tensor([[-300.0, -40.0, 40.0, 300.0]] * 3, requires_grad=True)
    asymmetric_loss(extreme, labels.float(), 0.5, focus, margin).backward()
    assert torch.isfinite(extreme.grad).all()


def test_asymmetric_loss_lets_easy_negatives_and_unknown_labels_go():
    logits = torch.tensor([[-3.0, -2.9, 0.0, 2.0]], requires_grad=True)  # p = 0.047, 0.052
    asymmetric_loss(logits, torch.tensor([[0.0, 0.0, -100.0, 1.0]])).backward()
    gradient = logits.grad[0].tolist()
    assert gradient[0] == 0
    assert gradient[1] > 0
    assert gradient[2] == 0
    assert gradient[3] < 0


def test_asymmetric_loss_of_unknown_labels_is_zero_with_zero_gradient():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = asymmetric_loss(logits, torch.full((2, 3), -100.0))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("label", [-1.0, 2.0, math.nan])
def test_asymmetric_loss_refuses_labels_that_are_no_probability(label):
    with pytest.raises(ValueError, match=rf"in \[0, 1\] or -100, got \[{label}\]"):
        asymmetric_loss(torch.zeros(1, 2), torch.tensor([[1.0, label]]))


@pytest.mark.parametrize(
    "settings", [(-1.0, 4.0, 0.05), (0.0, -0.5, 0.05), (0.0, 4.0, 1.0), (0.0, 4.0, -0.1)]
)
def test_asymmetric_loss_refuses_settings_outside_the_paper(settings):
    with pytest.raises(ValueError, match=rf"got {settings[0]}, {settings[1]} and {settings[2]}"):
        asymmetric_loss(torch.zeros(1, 2), torch.zeros(1, 2), *settings)


def test_uninformative_embeddings_cost_log_batch_size():
    same = F.normalize(torch.ones(4, 3), dim=-1)
    loss = symmetric_info_nce(same, same, logit_scale=torch.tensor([10.0]))
    assert loss.item() == pytest.approx(math.log(4))


def test_contrastive_loss_matches_a_hand_computed_pair():
    image, text = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # Scaled by 2 the logits are ((2, 1.2), (0, 1.6)); each term is logsumexp minus the diagonal.
    rows = math.log(math.exp(2) + math.exp(1.2)) - 2 + math.log(1 + math.exp(1.6)) - 1.6
    columns = math.log(math.exp(2) + 1) - 2 + math.log(math.exp(1.2) + math.exp(1.6)) - 1.6
    loss = symmetric_info_nce(image, text, logit_scale=torch.tensor([2.0]))
    assert loss.item() == pytest.approx((rows + columns) / 4)


def test_contrastive_loss_is_unchanged_when_the_pairs_are_shuffled():
    image, text = F.normalize(torch.randn(2, 5, 8), dim=-1)
    order = torch.tensor([3, 0, 4, 1, 2])
    scale = torch.tensor([20.0])
    torch.testing.assert_close(
        symmetric_info_nce(image, text, scale), symmetric_info_nce(image[order], text[order], scale)
    )


def test_contrastive_loss_is_larger_when_only_one_side_is_shuffled():
    image = F.normalize(torch.eye(5) + 0.1, dim=-1)
    scale = torch.tensor([20.0])
    swapped = symmetric_info_nce(image, image[[1, 0, 2, 3, 4]], scale)
    assert swapped > symmetric_info_nce(image, image, scale) + 1


def test_contrastive_loss_refuses_towers_of_different_width():
    with pytest.raises(ValueError, match=r"got \(2, 8\) and \(2, 4\)"):
        symmetric_info_nce(torch.ones(2, 8), torch.ones(2, 4), torch.tensor([1.0]))
