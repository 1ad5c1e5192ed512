import math

import pytest
import torch
import torch.nn.functional as F

from radtower.modeling import modeling_pair_losses
from radtower.modeling.modeling_pair_losses import ProcessGroup, matryoshka, sigmoid_loss, symmetric_info_nce
from radtower.modeling.modeling_pair_relation import PairRelation, jaccard_index

LABELS = torch.tensor(
    [
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 0],
        [-100, -100, -100, -100],
        [0, 0, -100, 0],
        [1, 1, 0, 1],
        [0.7, 0.2, 0, 0],
    ]
)
KEYS = torch.tensor([[1, 21], [2, 22], [3, 23], [1, 24], [0, 25], [0, 26], [4, 22]])


def _sides(num=7, width=5, dtype=torch.float64):
    torch.manual_seed(3)
    sides = (F.normalize(torch.randn(num, width, dtype=dtype), dim=-1) for _ in range(2))
    return [side.requires_grad_() for side in sides]


def _relation(keys, labels, share):
    has_keys = KEYS if keys else None
    has_labels = LABELS if labels else None
    return PairRelation(
        own=torch.arange(7),
        row_keys=has_keys,
        column_keys=has_keys,
        row_labels=has_labels,
        column_labels=has_labels,
        label_share=share,
    )


def _dense_positives(keys):
    same = torch.eye(7, dtype=torch.float64)
    if keys:
        same[0, 3] = same[3, 0] = same[1, 6] = same[6, 1] = 1
    return same


def _dense_jaccard():
    index = torch.eye(7, dtype=torch.float64)
    for i, left in enumerate(LABELS.tolist()):
        for j, right in enumerate(LABELS.tolist()):
            known = [(a >= 0.5, b >= 0.5) for a, b in zip(left, right, strict=True) if a >= 0 and b >= 0]
            union = sum(a or b for a, b in known)
            if known and i != j:
                index[i, j] = sum(a and b for a, b in known) / union if union else 1
    return index


def _dense_info_nce(images, texts, scale, masses):
    logits = scale * images @ texts.T
    loss = 0
    for logit, turn in ((logits, lambda m: m), (logits.T, lambda m: m.T)):
        target = sum(share * turn(mass) / turn(mass).sum(dim=1, keepdim=True) for share, mass in masses)
        loss = loss - (target * logit.log_softmax(dim=1)).sum(dim=1).mean() / 2
    return loss


def _assert_same(loss, dense, inputs):
    torch.testing.assert_close(loss, dense)
    ours = torch.autograd.grad(loss, inputs)
    for mine, theirs in zip(ours, torch.autograd.grad(dense, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.abs().max() > 1e-4


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize(
    ("keys", "labels", "share"),
    [
        (False, False, 0.0),
        (True, False, 0.0),
        (True, True, 0.0),
        (True, True, 0.3),
        (False, True, 1.0),
        (False, True, 0.6),
    ],
)
def test_info_nce_in_blocks_equals_the_dense_form(monkeypatch, block, keys, labels, share):
    monkeypatch.setattr(modeling_pair_losses, "BLOCK_ELEMENTS", block * 7)
    images, texts = _sides()
    scale = torch.tensor([14.0], dtype=torch.float64, requires_grad=True)
    masses = [(1 - share, _dense_positives(keys)), (share, _dense_jaccard())]
    loss = symmetric_info_nce(images, texts, scale, _relation(keys, labels, share))
    _assert_same(loss, _dense_info_nce(images, texts, scale, masses), [images, texts, scale])


@pytest.mark.parametrize("block", [2, 100])
@pytest.mark.parametrize("keys", [False, True])
def test_sigmoid_loss_in_blocks_equals_the_dense_form(monkeypatch, block, keys):
    monkeypatch.setattr(modeling_pair_losses, "BLOCK_ELEMENTS", block * 7)
    images, texts = _sides()
    scale, bias = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (4.0, -1.5))
    signs = _dense_positives(keys) * 2 - 1
    dense = -F.logsigmoid(signs * (scale * images @ texts.T + bias)).sum() / 7
    loss = sigmoid_loss(images, texts, scale, bias, _relation(keys, False, 0.0))
    _assert_same(loss, dense, [images, texts, scale, bias])


def test_without_a_relation_row_i_belongs_to_column_i():
    images, texts = _sides()
    plain = symmetric_info_nce(images, texts, 9.0)
    torch.testing.assert_close(plain, symmetric_info_nce(images, texts, 9.0, _relation(False, False, 0.0)))
    torch.testing.assert_close(
        sigmoid_loss(images, texts, 9.0, -3.0),
        sigmoid_loss(images, texts, 9.0, -3.0, _relation(False, False, 0.0)),
    )


def test_hand_computed_cases():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # Own cosine 1, the other 0, scale 2.
    loss = symmetric_info_nce(images, images, 2.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    # Both columns positive, half the mass each: the mean of both log-probabilities.
    keys = torch.tensor([[5], [5]])
    relation = PairRelation(own=torch.arange(2), row_keys=keys, column_keys=keys)
    expected = math.log(math.exp(2) + 1) - 1
    assert symmetric_info_nce(images, images, 2.0, relation).item() == pytest.approx(expected)
    # Own: log sigmoid(2 - 1); other: log sigmoid(-(0 - 1)); two of each, two rows.
    expected = math.log1p(math.exp(-1)) + math.log1p(math.exp(-1))
    assert sigmoid_loss(images, images, 2.0, -1.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("spread", [1.0, 200.0])
def test_columns_far_below_the_others_are_summed_right(spread):
    # exp(-2 * 200) is 0: a shift that all columns share would lose the lower ones.
    images = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    texts = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    loss = symmetric_info_nce(images, texts, spread)
    rows = math.log1p(math.exp(-2 * spread)) + 2 * spread + math.log1p(math.exp(-2 * spread))
    assert loss.item() == pytest.approx((rows + 2 * math.log(2)) / 4)


@pytest.mark.parametrize("loss", [symmetric_info_nce, lambda a, b, s: sigmoid_loss(a, b, s, -10.0)])
def test_half_precision_is_computed_in_float32_also_inside_autocast(loss):
    images, texts = (side.detach().bfloat16() for side in _sides())
    expected = loss(images.float(), texts.float(), 90.0)
    leaves = [side.clone().requires_grad_() for side in (images, texts)]
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*leaves, 90.0)
        value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    exact = [side.float().requires_grad_() for side in (images, texts)]
    loss(*exact, 90.0).backward()
    for leaf, other in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad, other.grad.bfloat16())


def test_matryoshka_is_the_mean_over_cuts_that_are_normalized_anew():
    images, texts = _sides()
    images, texts = images * 3, texts * 0.2
    expected = (
        sum(
            symmetric_info_nce(F.normalize(images[:, :d], dim=-1), F.normalize(texts[:, :d], dim=-1), 7.0)
            for d in (2, 5)
        )
        / 2
    )
    value = matryoshka(lambda a, b: symmetric_info_nce(a, b, 7.0), images, texts, [2, 5])
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("dims", [[], [2, 2], [0], [6]])
def test_matryoshka_refuses_cuts_that_are_none(dims):
    images, texts = _sides()
    with pytest.raises(ValueError, match=r"dims must be different sizes between 1 and 5, got \["):
        matryoshka(lambda a, b: symmetric_info_nce(a, b, 7.0), images, texts, dims)


def test_jaccard_index_is_over_what_is_known_of_both():
    torch.testing.assert_close(
        jaccard_index(LABELS, LABELS).double() * (1 - torch.eye(7)), _dense_jaccard() * (1 - torch.eye(7))
    )
    assert jaccard_index(LABELS[:1], LABELS[1:2]).item() == pytest.approx(1 / 3)


def test_memory_of_blocks_does_not_grow_with_the_square_of_the_batch(monkeypatch):
    largest = []
    monkeypatch.setattr(modeling_pair_losses, "BLOCK_ELEMENTS", 64 * 16)
    images, texts = _sides(64)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor):
                largest.append(output.numel())
            return output

    with Watch():
        symmetric_info_nce(images, texts, torch.tensor(5.0, requires_grad=True)).backward()
        sigmoid_loss(images, texts, 5.0, -5.0).backward()
    assert max(largest) == 64 * 16


@pytest.mark.parametrize(("shape", "world_size"), [((7, 4), 1), ((6, 5), 1), ((6, 5), 2), ((7,), 1)])
def test_refuses_sides_that_do_not_pair_up(shape, world_size):
    images, _ = _sides()
    with pytest.raises(ValueError, match=r"must pair up row by row, got .*\. Give one report per scan"):
        symmetric_info_nce(images, torch.zeros(shape), 1.0, group=ProcessGroup(world_size))


def test_refuses_a_relation_of_another_batch():
    images, texts = _sides()
    keys = KEYS[:6]
    relation = PairRelation(own=torch.arange(6), row_keys=keys, column_keys=keys)
    with pytest.raises(ValueError, match=r"relation must be of 7 rows and 7 columns, got 6 and 6\. Make it"):
        sigmoid_loss(images, texts, 1.0, 0.0, relation)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_refuses_a_share_outside_of_its_range(share):
    with pytest.raises(ValueError, match=rf"label_share must be in \[0, 1\], .* got {share}\. Give"):
        PairRelation(own=torch.arange(7), row_labels=LABELS, column_labels=LABELS, label_share=share)


def test_refuses_a_share_without_labels():
    with pytest.raises(
        ValueError, match=r"label_share must be .* where there are no labels, got 0\.5\. Give"
    ):
        PairRelation(own=torch.arange(7), label_share=0.5)


@pytest.mark.parametrize("columns", [None, KEYS[:, :1]])
def test_refuses_keys_of_one_side_or_of_two_widths(columns):
    with pytest.raises(ValueError, match=r"rows and columns must have keys of one width, .* got \(7, 2\)"):
        PairRelation(own=torch.arange(7), row_keys=KEYS, column_keys=columns)


def test_refuses_positives_without_keys():
    with pytest.raises(ValueError, match=r"positives must have keys or labels, got none for 7 rows\. Use"):
        PairRelation(own=torch.arange(7)).positives(slice(0, 2))
