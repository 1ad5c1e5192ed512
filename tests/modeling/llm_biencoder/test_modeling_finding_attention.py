import math

import pytest
import torch

from radtower.modeling.llm_biencoder.modeling_finding_attention import FindingAttention

MASK = torch.ones(1, 4)
SENTENCES = torch.tensor([[0, 0, 1, 1]])


def _head(pooling: str) -> FindingAttention:
    """Two features: the first is attended to, the second is the score."""
    head = FindingAttention(2, 1, pooling)
    with torch.no_grad():
        head.query.weight.copy_(torch.tensor([[2**0.5, 0.0]]))
        head.score.weight.copy_(torch.tensor([[0.0, 1.0]]))
        head.score.bias.fill_(-1.0)
    return head


def test_by_sentence_as_computed_by_hand():
    states = torch.tensor([[[0.0, 2.0], [math.log(3), 4.0], [1.0, -1.0], [1.0, 3.0]]])
    logits, weights, normalizer = _head("sentences")(states, MASK, SENTENCES)
    first, second = 0.25 * 2 + 0.75 * 4 - 1, 0.5 * -1 + 0.5 * 3 - 1  # 2.5 and 0
    total = math.exp(first) + math.exp(second)
    assert logits.item() == pytest.approx(math.log(total))
    assert normalizer.item() == logits.item()
    shares = [math.exp(first) / total, math.exp(second) / total]
    expected = [0.25 * shares[0], 0.75 * shares[0], 0.5 * shares[1], 0.5 * shares[1]]
    assert weights.flatten().tolist() == pytest.approx(expected)


def test_over_all_tokens_as_computed_by_hand():
    states = torch.tensor([[[0.0, 2.0], [math.log(3), 4.0], [0.0, -1.0], [0.0, 3.0]]])
    logits, weights, normalizer = _head("tokens")(states, MASK)
    assert weights.flatten().tolist() == pytest.approx([1 / 6, 0.5, 1 / 6, 1 / 6])
    assert logits.item() == pytest.approx((2 + 12 - 1 + 3) / 6 - 1)
    assert normalizer.item() == pytest.approx(math.log(6))


@pytest.mark.parametrize("pooling", ["tokens", "sentences"])
def test_padding_and_its_numbers_change_nothing(pooling):
    torch.manual_seed(0)
    head = FindingAttention(6, 3, pooling)
    states = torch.randn(1, 4, 6)
    alone = head(states, MASK, SENTENCES)
    padded = torch.cat([states, torch.full((1, 2, 6), 1e4)], dim=1)
    mask = torch.tensor([[1.0, 1, 1, 1, 0, 0]])
    beside = torch.cat([padded, torch.randn(1, 6, 6)])
    numbers = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 2, 3, 4, 5]])
    together = head(beside, torch.cat([mask, torch.ones(1, 6)]), numbers)
    torch.testing.assert_close(together[0][:1], alone[0])
    torch.testing.assert_close(together[1][:1, :, :4], alone[1])
    assert together[1][:1, :, 4:].abs().max() == 0
    torch.testing.assert_close(together[1].sum(dim=-1), torch.ones(2, 3))


def test_a_sentence_of_far_smaller_affinity_keeps_its_score_and_its_gradient():
    head = _head("sentences")
    states = torch.tensor([[[500.0, 0.0], [500.0, 0.0], [0.0, 5.0], [0.0, 5.0]]], requires_grad=True)
    logits, weights, _ = head(states, MASK, SENTENCES)
    assert logits.item() == pytest.approx(math.log(math.exp(-1) + math.exp(4)))
    assert weights[0, 0, 2:].tolist() == pytest.approx([0.4966537] * 2)
    logits.sum().backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()
    assert states.grad[0, 2, 1].item() == pytest.approx(0.4966537)


def test_features_are_standardized_by_those_of_the_training_texts():
    torch.manual_seed(0)
    states = torch.randn(50, 3) * torch.tensor([1.0, 300.0, 0.0]) + torch.tensor([5.0, -7.0, 2.0])
    head = FindingAttention(3, 2)
    plain = FindingAttention(3, 2)
    plain.load_state_dict(head.state_dict())
    head.standardize(states)
    scaled = (states - states.mean(dim=0)) / states.std(dim=0).clamp(min=1e-6)
    torch.testing.assert_close(head(states[None], torch.ones(1, 50)), plain(scaled[None], torch.ones(1, 50)))
    assert head(states[None], torch.ones(1, 50))[0].isfinite().all()
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        head.standardize(states[:1])


def test_the_head_computes_in_float32_under_autocast():
    torch.manual_seed(0)
    head, states = FindingAttention(64, 3, "sentences"), 30 * torch.randn(1, 4, 64)
    expected = head(states, MASK, SENTENCES)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(states, MASK, SENTENCES)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
