"""A scan of any size is encoded window by window, and a scan that is none is refused."""

import pytest
import torch

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.modeling.modeling_ct3d import CT3DVisionModel


def _tower(pooling="avg", **fields):
    config = CT3DVisionConfig(
        **{"hidden_sizes": [8, 16], "layers": [1, 1], "pooling": pooling, "image_size": [8, 8, 8]} | fields
    )
    model = CT3DVisionModel(config).train()
    for scale in (1.0, 3.0):  # fresh running statistics are the identity and hide mistakes
        model(scale * torch.randn(4, 1, 8, 8, 8) + 0.5)
    return model.eval()


def _scan(*shape):
    return torch.rand(shape) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["avg", "max", "gated"])
def test_a_scan_of_one_window_is_encoded_as_by_forward(pooling):
    model = _tower(pooling)
    volume = _scan(1, 8, 8, 8)
    torch.testing.assert_close(model.encode_volume(volume), model(volume[None]).pooler_output[0])


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize(("pooling", "aggregation"), [("avg", None), ("max", None), ("gated", "avg")])
def test_windows_spread_from_edge_to_edge_are_aggregated(pooling, aggregation, batch_size):
    model = _tower(pooling)
    volume = _scan(1, 21, 8, 11)
    # Z: 13 voxels to go in steps of at most 6 are three, 0 4 9 13. X: 3 to go are one, 0 3.
    windows = [volume[:, z : z + 8, :, x : x + 8] for z in (0, 4, 9, 13) for x in (0, 3)]
    pooled = torch.stack([model(window[None]).pooler_output[0] for window in windows])
    expected = pooled.amax(dim=0) if pooling == "max" else pooled.mean(dim=0)
    got = model.encode_volume(volume, overlap=0.25, aggregation=aggregation, batch_size=batch_size)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_gated_aggregation_is_the_gate_over_all_positions_of_all_windows(batch_size):
    model = _tower("gated")
    for parameter in model.pooler.parameters():
        parameter.normal_(0, 1.5)  # a fresh gate is almost a mean and would hide mistakes
    volume = _scan(1, 24, 8, 16)
    windows = [volume[:, z : z + 8, :, x : x + 8] for z in (0, 8, 16) for x in (0, 8)]
    maps = torch.cat([model(window[None]).last_hidden_state for window in windows], dim=2)
    expected = model.pooler(maps)[0][0]
    got = model.encode_volume(volume, overlap=0, batch_size=batch_size)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    mean = torch.stack([model(window[None]).pooler_output[0] for window in windows]).mean(dim=0)
    assert (expected - mean).abs().max() > 0.02


@torch.no_grad()
def test_a_scan_smaller_than_the_window_is_centered_in_air():
    model = _tower()
    volume = _scan(1, 5, 9, 6)
    padded = torch.full((1, 8, 9, 8), -1.0)
    padded[:, 1:6, :, 1:7] = volume
    windows = [padded[:, :, y : y + 8] for y in (0, 1)]
    expected = torch.stack([model(window[None]).pooler_output[0] for window in windows]).mean(dim=0)
    torch.testing.assert_close(model.encode_volume(volume), expected)


@torch.no_grad()
def test_windows_are_cut_as_they_are_needed():
    model, sizes = _tower(), []

    def stop_at_third(_, inputs):
        sizes.append(tuple(inputs[0].shape))
        if len(sizes) == 3:
            raise InterruptedError

    model.register_forward_pre_hook(stop_at_third)
    scan = torch.zeros(1).expand(1, 100_000, 1000, 1000)  # 400 GB, were it laid out
    with pytest.raises(InterruptedError):
        model.encode_volume(scan, window_size=(8, 8, 8), batch_size=2)
    assert sizes == [(2, 1, 8, 8, 8)] * 3


@torch.no_grad()
def test_no_voxel_is_lost():
    model = _tower()
    volume = _scan(1, 19, 10, 9)
    expected = model.encode_volume(volume, window_size=(8, 10, 9))
    for z in (0, 9, 18):
        changed = volume.clone()
        changed[:, z] *= -1
        assert (model.encode_volume(changed, window_size=(8, 10, 9)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((1, 1, 8, 8, 8), {}, r"\(C, Z, Y, X\), got shape \(1, 1, 8, 8, 8\)"),
        ((1, 8, 8, 8), {"overlap": 1.0}, r"overlap must be in \[0, 1\), got 1.0"),
        ((1, 8, 8, 8), {"overlap": -0.5}, r"overlap must be in \[0, 1\), got -0.5"),
        ((1, 8, 8, 8), {"aggregation": "sum"}, "avg, max or gated, got 'sum'"),
        ((1, 8, 8, 8), {"aggregation": "gated"}, "got 'gated' on avg"),
        ((1, 8, 8, 8), {"window_size": (8, 0, 8)}, r"window_size must be positive, got \(8, 0, 8\)"),
        ((1, 8, 8, 8), {"batch_size": 0}, "batch_size must be positive, got 0"),
        ((2, 8, 8, 8), {}, "1 channels, got 2"),
        ((1, 0, 8, 8), {}, r"must have voxels, got shape \(1, 0, 8, 8\)"),
        ((1, 8, 8, 8), {"window_size": 8}, r"must be \(Z, Y, X\), got 8"),
        ((1, 8, 8, 8), {"window_size": (8, 8)}, r"must be \(Z, Y, X\), got \(8, 8\)"),
    ],
)
def test_refuses_scans_and_windows_it_cannot_use(shape, settings, message):
    with pytest.raises(ValueError, match=message):
        _tower().encode_volume(torch.zeros(shape), **settings)


def test_refuses_to_encode_a_scan_while_training():
    with pytest.raises(RuntimeError, match="got training mode"):
        _tower().train().encode_volume(torch.zeros(1, 8, 8, 8))


@pytest.mark.parametrize(
    ("volume", "settings", "message"),
    [
        ([[[[0.0]]]], {}, "volume must be a tensor, got list"),
        (
            torch.zeros(1, 8, 8, 8),
            {"window_size": (8, 8.5, 8)},
            r"window_size must be whole numbers, got 8\.5",
        ),
        (torch.zeros(1, 8, 8, 8), {"batch_size": 1.5}, r"batch_size must be whole numbers, got 1\.5"),
    ],
)
def test_refuses_scans_and_settings_of_another_type(volume, settings, message):
    with pytest.raises(TypeError, match=message):
        _tower().encode_volume(volume, **settings)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(float("nan"), "nan to nan"), (float("inf"), "0 to inf"), (-1000.0, "-1000 to 0"), (1.02, "0 to 1.02")],
)
def test_refuses_values_that_no_processor_returns_wherever_they_are(value, shown):
    volume = torch.zeros(1, 21, 8, 8)
    volume[0, 20, 3, 5] = value
    with pytest.raises(ValueError, match=rf"volume must be in \[-1, 1\], got {shown}"):
        _tower().encode_volume(volume)
    volume[0, 20, 3, 5] = 1.004  # a rounding error
    assert _tower().encode_volume(volume).isfinite().all()


@torch.no_grad()
def test_rounding_does_not_double_the_windows():
    model, calls = _tower(), []
    model.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[0]))
    model.encode_volume(_scan(1, 200, 4, 4), window_size=(20, 4, 4), overlap=0.9, batch_size=100)
    assert sum(calls) == 91  # steps of 2 over 180 voxels
