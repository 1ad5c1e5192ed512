import pytest
import torch
import torch.nn.functional as F
from torch import nn

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_ct3d_winograd import convolve_by_winograd, suits_winograd


def _conv(**changes):
    return nn.Conv3d(**{"in_channels": 32, "out_channels": 40, "kernel_size": 3, "padding": 1} | changes)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 7, 8, 13])
def test_gives_what_the_direct_convolution_gives_at_every_depth(depth):
    x, weight, bias = torch.randn(2, 5, depth, 6, 9), torch.randn(7, 5, 3, 3, 3), torch.randn(7)
    expected = F.conv3d(x, weight, bias, padding=1)
    got = convolve_by_winograd(x, weight, bias)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    got = convolve_by_winograd(x.to(memory_format=torch.channels_last_3d), weight, bias)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_is_chosen_where_it_pays():
    x = torch.empty(1, 32, 16, 16, 16)
    assert suits_winograd(_conv(), x)
    assert not suits_winograd(_conv(), x[:, :, :15])
    assert not suits_winograd(_conv(), torch.empty(1, 32, 40, 15, 16))
    assert not suits_winograd(_conv(in_channels=31), x)
    assert not suits_winograd(_conv(out_channels=31), x)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{"kernel_size": (1, 3, 3)}, {"stride": 2}, {"dilation": 2, "padding": 2}, {"padding": 0}],
    ids=str,
)
def test_is_not_chosen_for_another_convolution(changes):
    assert not suits_winograd(_conv(**changes), torch.empty(1, 32, 16, 16, 16))


def test_is_not_chosen_where_gradients_or_another_precision_are_asked_for():
    x = torch.empty(1, 32, 16, 16, 16)
    assert not suits_winograd(_conv(), x)
    with torch.no_grad():
        assert not suits_winograd(_conv(), x.bfloat16())
        assert not suits_winograd(_conv(), x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not suits_winograd(_conv(), x)


def test_a_network_embeds_alike_with_and_without_gradients_and_whatever_the_batch():
    model = CT3DVisionModel(CT3DVisionConfig(hidden_sizes=[32, 48], layers=[1, 1])).train()
    model(torch.randn(2, 1, 16, 16, 16))
    model.eval()
    volumes = torch.randn(2, 1, 34, 40, 36)
    direct = model(volumes).pooler_output.detach()
    with torch.no_grad():
        fast = model(volumes).pooler_output
        single = model(volumes[1:]).pooler_output
    assert not torch.equal(fast, direct), "the direct convolution ran twice"
    assert (fast - direct).abs().max() < 1e-5 * direct.abs().max()
    torch.testing.assert_close(single, fast[1:], atol=1e-6, rtol=1e-6)
