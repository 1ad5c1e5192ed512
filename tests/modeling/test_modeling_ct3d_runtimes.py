"""The tower gives the same output however it is run: layout, precision, compiled, exported, as ONNX."""

import copy

import pytest
import torch

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification, CT3DVisionModel

BLOCK_TYPES = ["basic", "r2plus1d", "mc3", "bottleneck"]


def _model(block_type="basic", **fields):
    config = CT3DVisionConfig(
        **{"hidden_sizes": [8, 16], "layers": [1, 1], "block_type": block_type, "pooling": "gated"} | fields
    )
    model = CT3DVisionModel(config).train()
    for scale in (1.0, 3.0):
        model(scale * torch.randn(4, config.num_channels, 8, 10, 12) + 0.5)
    return model.eval()


class _Tensors(torch.nn.Module):
    """Plain tensors out, as an inference server wants them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        output = self.model(pixel_values)
        return output.pooler_output, output.last_hidden_state


@pytest.mark.filterwarnings("ignore:TF32:UserWarning")  # of the switch of oneDNN
@torch.no_grad()
@pytest.mark.parametrize("block_type", BLOCK_TYPES)
@pytest.mark.parametrize("num_channels", [1, 2])
def test_the_layout_of_weights_and_volumes_does_not_matter(block_type, num_channels):
    model = _model(block_type, num_channels=num_channels)
    volume = torch.randn(2, num_channels, 8, 10, 12)
    got = model(volume)
    assert got.last_hidden_state.is_contiguous()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last_3d)
    for candidate in (volume, volume.to(memory_format=torch.channels_last_3d), volume.flip(-1).flip(-1)):
        torch.testing.assert_close(other(candidate).pooler_output, got.pooler_output)
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(model(volume).pooler_output, got.pooler_output, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_bfloat16_agrees_to_its_eight_bits(block_type):
    model = _model(block_type)
    volume = torch.randn(2, 1, 8, 10, 12)
    expected = model(volume).pooler_output
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(volume).pooler_output
    low = model.bfloat16()(volume).pooler_output
    assert low.dtype == torch.bfloat16
    for got in (mixed, low):
        assert not torch.equal(got.float(), expected)
        assert (got.float() - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.slow  # compilation
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@torch.no_grad()
@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_compiled_output_is_equal(block_type):
    model = _model(block_type)
    volume = torch.randn(2, 1, 8, 10, 12)
    compiled = torch.compile(_Tensors(model), fullgraph=True)
    for got, expected in zip(compiled(volume), _Tensors(model)(volume), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow  # compilation
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@pytest.mark.parametrize("thrifty", [False, True])
def test_compiled_training_gives_equal_gradients_and_statistics(thrifty):
    model = _model().train()
    compiled = copy.deepcopy(model)
    if thrifty:
        compiled.activation_checkpointing_enable()
    volume = torch.randn(2, 1, 8, 10, 12)
    model(volume).pooler_output.square().sum().backward()
    torch.compile(_Tensors(compiled))(volume)[0].square().sum().backward()
    for (name, plain), (_, got) in zip(model.named_parameters(), compiled.named_parameters(), strict=True):
        torch.testing.assert_close(got.grad, plain.grad, atol=1e-4, rtol=1e-3, msg=name)
    for (name, plain), (_, got) in zip(model.named_buffers(), compiled.named_buffers(), strict=True):
        torch.testing.assert_close(got, plain, msg=name)


@pytest.mark.slow  # tracing
@torch.no_grad()
@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_exported_program_takes_any_batch(block_type):
    model = _Tensors(_model(block_type))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 1, 8, 10, 12),), dynamic_shapes=({0: batch},))
    for size in (1, 5):
        volume = torch.randn(size, 1, 8, 10, 12)
        for got, expected in zip(program.module()(volume), model(volume), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow  # tracing
@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
@torch.no_grad()
@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_onnx_takes_any_batch(block_type, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = _Tensors(_model(block_type))
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        model,
        (torch.randn(2, 1, 8, 10, 12),),
        tmp_path / "tower.onnx",
        input_names=["pixel_values"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "tower.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 5):
        volume = torch.randn(size, 1, 8, 10, 12)
        results = session.run(None, {"pixel_values": volume.numpy()})
        for got, expected in zip(results, model(volume), strict=True):
            torch.testing.assert_close(torch.from_numpy(got), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow  # a full-size network
@torch.no_grad()
def test_a_resnet_50_classifies_a_scan():
    config = CT3DVisionConfig.from_depth(50, num_labels=4, pooling="gated")
    output = CT3DVisionForImageClassification(config).eval()(torch.randn(1, 1, 32, 48, 48))
    assert output.logits.shape == (1, 4)
    assert output.logits.isfinite().all()
