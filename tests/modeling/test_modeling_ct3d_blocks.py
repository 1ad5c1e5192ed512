import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_ct3d_blocks import (
    CT3DBasicBlock,
    CT3DBottleneckBlock,
    CT3DGatedPooling,
    CT3DPaddedShortcut,
    CT3DResidualBlock,
    convolve_and_norm,
)

NETWORKS = {
    "basic": {},
    "r2plus1d": {"block_type": "r2plus1d", "stem_hidden_size": 5, "stem_kernel_size": [3, 5, 5]},
    "mc3": {"block_type": "mc3", "shortcut": "conv", "pooling": "gated"},
    "bottleneck": {"block_type": "bottleneck", "stem_max_pool": True, "dilations": [1, 2]},
    "padded": {"shortcut": "pad", "pooling": "max"},
}


def _network(name, **changes):
    """Two stages with running statistics of their own: fresh ones are the identity and hide mistakes."""
    config = CT3DVisionConfig(**{"hidden_sizes": [8, 16], "layers": [1, 2]} | NETWORKS[name] | changes)
    model = CT3DVisionModel(config).train()
    for scale in (1.0, 3.0):
        model(scale * torch.randn(3, config.num_channels, 10, 12, 14) + 0.5)
    return model


def _unfolded(model):
    """A hook on every layer keeps the batch norms apart."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, (nn.Conv3d, nn.BatchNorm3d)):
            module.register_forward_hook(lambda *_: None)
    return plain


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_no_output_and_no_weight(name):
    model = _network(name).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    volume = torch.randn(2, 1, 10, 12, 14)
    got, expected = model(volume), _unfolded(model)(volume)
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert expected.last_hidden_state.std() > 0.05
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@torch.no_grad()
def test_a_folded_layer_runs_as_one_convolution():
    conv, norm = nn.Conv3d(2, 3, 3, padding=1, bias=False), nn.BatchNorm3d(3).eval()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        convolve_and_norm(conv, norm, torch.randn(1, 2, 4, 4, 4))
    names = {event.key for event in profiler.key_averages()}
    assert "aten::convolution" in names
    assert not any("batch_norm" in name for name in names)


@torch.no_grad()
def test_folding_sees_statistics_that_change_between_calls():
    conv, norm = nn.Conv3d(1, 1, 1, bias=False), nn.BatchNorm3d(1).eval()
    x = torch.tensor([1.0, 5.0]).view(1, 1, 1, 1, 2)
    conv.weight.fill_(3.0)
    convolve_and_norm(conv, norm, x)
    norm.running_mean.fill_(4.0)
    norm.running_var.fill_(0.25 - norm.eps)
    norm.weight.fill_(1.5)
    norm.bias.fill_(-2.0)
    # (3 x - 4) / 0.5 * 1.5 - 2
    torch.testing.assert_close(convolve_and_norm(conv, norm, x).flatten(), torch.tensor([-5.0, 31.0]))


@torch.no_grad()
def test_a_hook_or_a_replaced_forward_is_not_skipped():
    conv, norm = nn.Conv3d(1, 1, 1, bias=False), nn.BatchNorm3d(1).eval()
    x, seen = torch.ones(1, 1, 2, 2, 2), []
    handle = conv.register_forward_hook(lambda *call: seen.append(call[-1].mean().item()))
    convolve_and_norm(conv, norm, x)
    assert seen == [pytest.approx(conv.weight.item())]
    handle.remove()
    norm.forward = lambda h: h + 41  # as a library that moves weights does
    torch.testing.assert_close(convolve_and_norm(conv, norm, x), conv(x) + 41)


def test_a_frozen_batch_norm_trains_the_weights_around_it_as_an_unfolded_one_does():
    model = _network("basic").eval()
    plain = _unfolded(model)
    volume = torch.randn(2, 1, 10, 12, 14)
    for network in (model, plain):
        network.zero_grad()
        network(volume).pooler_output.square().sum().backward()
    for (name, ours), (_, theirs) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3, msg=name)


@torch.no_grad()
def test_a_batch_norm_without_running_statistics_is_not_folded():
    conv, norm = nn.Conv3d(1, 2, 1, bias=False), nn.BatchNorm3d(2, track_running_stats=False).eval()
    x = torch.randn(2, 1, 3, 3, 3)
    torch.testing.assert_close(convolve_and_norm(conv, norm, x), norm(conv(x)))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointing_updates_statistics_once_and_gives_the_same_gradients(name, reentrant):
    model = _network(name).train()
    thrifty = copy.deepcopy(model)
    thrifty.activation_checkpointing_enable({"use_reentrant": reentrant})
    volume = torch.randn(2, 1, 10, 12, 14)
    for network in (model, thrifty):
        network(volume).pooler_output.square().sum().backward()
        network(2 * volume).pooler_output.square().sum().backward()
    for (key, plain), (_, saved) in zip(model.named_buffers(), thrifty.named_buffers(), strict=True):
        assert torch.equal(plain, saved), key
    for (key, plain), (_, saved) in zip(model.named_parameters(), thrifty.named_parameters(), strict=True):
        torch.testing.assert_close(plain.grad, saved.grad, msg=key)
    assert model.stem[1].num_batches_tracked == thrifty.stem[1].num_batches_tracked == 4


def test_checkpointing_keeps_a_third_of_the_activations():
    def saved_bytes(network):
        total, seen = 0, set()

        def pack(tensor):
            nonlocal total
            if tensor.data_ptr() not in seen and tensor.ndim == 5 and tensor.shape[0] == 2:
                seen.add(tensor.data_ptr())
                total += tensor.numel() * 4
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = network(torch.randn(2, 1, 16, 16, 16)).pooler_output
        del output
        return total

    model = _network("basic", layers=[3, 3])
    plain = saved_bytes(model)
    model.gradient_checkpointing, model._gradient_checkpointing_func = (
        True,
        functools.partial(checkpoint, use_reentrant=False),
    )
    assert saved_bytes(model) < plain / 3


@pytest.mark.parametrize(
    ("kind", "stride", "expected"),
    [("full", 2, (4, 5, 6)), ("planar", 2, (7, 5, 6)), ("factored", 2, (4, 5, 6)), ("full", 1, (7, 9, 11))],
)
def test_a_basic_block_strides_the_axes_of_its_kind(kind, stride, expected):
    block = CT3DBasicBlock(3, 5, stride, kind)
    assert block(torch.randn(2, 3, 7, 9, 11)).shape == (2, 5, *expected)


def test_a_factored_block_has_the_width_of_published_weights_between_its_halves():
    block = CT3DBasicBlock(64, 128, 2, "factored")
    # 64 * 128 * 27 // (64 * 9 + 3 * 128) = 230, for both convolutions of the block.
    assert block.conv1[0].weight.shape == (230, 64, 1, 3, 3)
    assert block.conv2[0].weight.shape == (230, 128, 1, 3, 3)
    assert block.conv2[3].weight.shape == (128, 230, 3, 1, 1)


@torch.no_grad()
def test_dilation_reaches_two_voxels_away_and_keeps_the_size():
    block = CT3DBottleneckBlock(4, 8, 1, dilation=2).eval()
    impulse = torch.zeros(1, 4, 9, 9, 9)
    impulse[..., 4, 4, 4] = 1.0
    difference = block(impulse) - block(torch.zeros_like(impulse))
    reached = difference.abs().sum(dim=(0, 1)).nonzero()
    assert reached.min() == 2
    assert reached.max() == 6
    assert (reached % 2 == 0).all()


def test_a_padded_shortcut_takes_every_second_voxel_and_adds_empty_channels():
    x = torch.arange(2 * 3 * 4 * 5.0).view(1, 2, 3, 4, 5)
    got = CT3DPaddedShortcut(3, (1, 2, 2))(x)
    assert got.shape == (1, 5, 3, 2, 3)
    assert torch.equal(got[:, :2], F.avg_pool3d(x, 1, stride=(1, 2, 2)))
    assert not got[:, 2:].any()


def test_the_base_block_has_no_convolutions_of_its_own():
    block = CT3DResidualBlock()
    with pytest.raises(NotImplementedError):
        block(torch.zeros(1, 4, 2, 2, 2))
    with pytest.raises(NotImplementedError):
        block._last(torch.zeros(1, 4, 2, 2, 2))


def test_gated_pooling_is_a_softmax_over_positions_per_channel():
    pooling = CT3DGatedPooling(2)
    with torch.no_grad():
        for layer, weight, bias in (
            (pooling.value, [[0.5, -1.0]], [0.25]),
            (pooling.gate, [[2.0, 1.0]], [-0.5]),
            (pooling.score, [[3.0], [-2.0]], [0.125, 0.5]),
        ):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    positions = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [0.0, 4.0]])  # (N, E)
    # Ilse et al. 2018, equation 9, position by position.
    gate = torch.tanh(positions @ torch.tensor([0.5, -1.0]) + 0.25)
    gate = gate * torch.sigmoid(positions @ torch.tensor([2.0, 1.0]) - 0.5)
    scores = torch.stack([3 * gate + 0.125, -2 * gate + 0.5], dim=1)
    weights = scores.exp() / scores.exp().sum(dim=0)
    pooled, attention, mass = pooling(positions.T.reshape(1, 2, 1, 3, 1))
    torch.testing.assert_close(attention, weights.T.reshape(1, 2, 1, 3, 1))
    torch.testing.assert_close(pooled, (weights * positions).sum(dim=0)[None])
    torch.testing.assert_close(mass, scores.exp().sum(dim=0).log()[None])
    assert attention[0, 0].std() > 0.1
