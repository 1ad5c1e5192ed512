import pytest
import torch
from torch import nn

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.modeling.losses import masked_binary_cross_entropy
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification, CT3DVisionModel

# Equal weights give outputs that differ in the last bits: a loaded file is aligned otherwise in memory.
LAST_BITS = {"atol": 1e-5, "rtol": 0}
EVAL_NORM = (1 + 1e-5) ** -0.5  # what a fresh batch norm multiplies by in eval mode


@pytest.fixture
def model(tiny_vision_config) -> CT3DVisionModel:
    return CT3DVisionModel(tiny_vision_config).eval()


@pytest.fixture
def classifier(tiny_vision_config) -> CT3DVisionForImageClassification:
    return CT3DVisionForImageClassification(tiny_vision_config).eval()


def _with_batch_statistics(model: nn.Module) -> nn.Module:
    """A few training steps' worth of running statistics: fresh ones are the identity and hide mistakes."""
    model.train()
    for scale in (1.0, 3.0):
        model(scale * torch.randn(4, 1, 8, 8, 8) + 0.5)
    return model.eval()


def _point_kernel(conv: nn.Conv3d, weights: list[float]) -> None:
    """A convolution that only looks at the voxel itself; one weight per output channel."""
    conv.weight.data.zero_()
    center = tuple(size // 2 for size in conv.kernel_size)
    for channel, weight in enumerate(weights):
        conv.weight.data[(channel, 0, *center)] = weight


@torch.no_grad()
def test_shapes(model, classifier):
    output = model(torch.randn(2, 1, 8, 12, 16))
    assert output.last_hidden_state.shape == (2, 16, 2, 3, 4)
    assert output.pooler_output.shape == (2, 16)
    assert classifier(torch.randn(2, 1, 8, 12, 16)).logits.shape == (2, 2)


def test_the_default_network_turns_a_crop_into_6_12_12_with_33_million_parameters():
    with torch.device("meta"):
        model = CT3DVisionModel(CT3DVisionConfig()).eval()
        output = model(torch.empty(1, 1, 96, 192, 192))
    assert output.last_hidden_state.shape == (1, 512, 6, 12, 12)
    assert output.pooler_output.shape == (1, 512)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 33


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "expected"),
    [
        ([2, 2, 2], [2, 2, 2], (8, 6, 10), (4, 3, 5)),
        ([3, 7, 1], [1, 2, 1], (5, 9, 4), (5, 5, 4)),
        ([4, 2, 3], [4, 1, 3], (9, 6, 7), (2, 5, 3)),
    ],
)
def test_the_stem_pads_odd_kernels_by_half_and_even_ones_not_at_all(kernel, stride, size, expected):
    config = CT3DVisionConfig(hidden_sizes=[4], layers=[1], stem_kernel_size=kernel, stem_stride=stride)
    with torch.device("meta"):
        output = CT3DVisionModel(config).eval()(torch.empty(1, 1, *size))
    assert output.last_hidden_state.shape == (1, 4, *expected)


@torch.no_grad()
def test_a_block_adds_its_input_to_what_the_convolutions_make_of_it():
    config = CT3DVisionConfig(hidden_sizes=[1], layers=[1], stem_kernel_size=[1, 1, 1], stem_stride=[1, 1, 1])
    model = CT3DVisionModel(config).eval()
    block = model.stages[0][0]
    _point_kernel(model.stem[0], [2.0])
    _point_kernel(block.conv1, [3.0])
    _point_kernel(block.conv2, [-0.5])
    block.norm2.bias.fill_(3.0)
    volume = torch.tensor([1.0, -2.0, 0.5, 4.0]).view(1, 1, 1, 2, 2)
    # ReLU after the stem removes -2; then -0.5 * relu(3 x) + 3 + x, whose ReLU removes the last voxel.
    stem = torch.tensor([2.0, 0.0, 1.0, 8.0]) * EVAL_NORM
    expected = stem - 1.5 * stem * EVAL_NORM**2 + 3
    assert expected[3] < 0
    expected[3] = 0
    torch.testing.assert_close(model(volume).last_hidden_state.flatten(), expected)


@torch.no_grad()
@pytest.mark.parametrize(("pooling", "expected"), [("avg", [1.75, 3.5]), ("max", [5.0, 10.0])])
def test_later_stages_keep_every_second_voxel_and_the_map_is_pooled_over_all_positions(pooling, expected):
    config = CT3DVisionConfig(
        hidden_sizes=[1, 2],
        layers=[1, 1],
        stem_kernel_size=[1, 1, 1],
        stem_stride=[1, 1, 1],
        pooling=pooling,
    )
    model = CT3DVisionModel(config).eval()
    _point_kernel(model.stem[0], [1 / EVAL_NORM])
    first, second = model.stages[0][0], model.stages[1][0]
    first.conv2.weight.zero_()
    second.conv2.weight.zero_()
    _point_kernel(second.downsample[0], [1 / EVAL_NORM, 2 / EVAL_NORM])
    volume = torch.full((1, 1, 1, 4, 4), 100.0)
    volume[0, 0, 0, ::2, ::2] = torch.tensor([[1.0, -7.0], [5.0, 1.0]])
    output = model(volume)
    torch.testing.assert_close(output.last_hidden_state[0, 0, 0], torch.tensor([[1.0, 0.0], [5.0, 1.0]]))
    torch.testing.assert_close(output.pooler_output, torch.tensor([expected]))


@torch.no_grad()
def test_each_volume_is_encoded_independently_of_its_batch(model):
    model = _with_batch_statistics(model)
    batch = torch.randn(3, 1, 8, 8, 8)
    torch.testing.assert_close(model(batch).pooler_output[1:2], model(batch[1:2]).pooler_output)


@torch.no_grad()
def test_reads_volumes_of_another_precision_than_its_weights(model):
    volume = torch.randn(1, 1, 8, 8, 8)
    expected = model(volume).pooler_output
    assert torch.equal(model(volume.double()).pooler_output, expected)
    assert model.bfloat16()(volume).pooler_output.dtype == torch.bfloat16


def test_convolutions_start_with_the_variance_that_relu_needs(tiny_vision_config):
    # Fan out of this convolution: 16 channels x 27 positions, twice the fan in; 3456 weights.
    weight = CT3DVisionModel(tiny_vision_config).stages[1][0].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (16 * 27)) ** 0.5, rel=0.1)


def test_every_parameter_receives_a_gradient(classifier):
    classifier.train()(torch.randn(2, 1, 8, 8, 8), labels=torch.tensor([[1.0, 0.0]] * 2)).loss.backward()
    dead = [n for n, p in classifier.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@torch.no_grad()
def test_returns_a_loss_only_when_labels_are_given(classifier):
    volumes, labels = torch.randn(2, 1, 8, 8, 8), torch.tensor([[1.0, -100.0], [0.0, 1.0]])
    output = classifier(volumes, labels=labels)
    assert torch.equal(output.loss, masked_binary_cross_entropy(output.logits, labels))
    assert classifier(volumes).loss is None


def test_logits_are_a_linear_map_of_the_embedding(classifier):
    volumes = torch.randn(2, 1, 8, 8, 8)
    pooled = classifier.vision_model(volumes).pooler_output
    expected = pooled @ classifier.classifier.weight.T + classifier.classifier.bias
    torch.testing.assert_close(classifier(volumes).logits, expected)


def test_refuses_the_uncertain_label_of_chexpert(classifier):
    with pytest.raises(ValueError, match=r"in \[0, 1\] or -100, got \[-1.0\]"):
        classifier(torch.randn(1, 1, 8, 8, 8), labels=torch.tensor([[1.0, -1.0]]))


@torch.no_grad()
def test_reload_gives_identical_weights_buffers_and_outputs(classifier, tmp_path):
    classifier = _with_batch_statistics(classifier)
    volume = torch.randn(1, 1, 8, 8, 8)
    classifier.save_pretrained(tmp_path)
    reloaded = CT3DVisionForImageClassification.from_pretrained(tmp_path).eval()
    before, after = classifier.state_dict(), reloaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert dict(classifier.named_buffers()).keys() == dict(reloaded.named_buffers()).keys()
    torch.testing.assert_close(classifier(volume).logits, reloaded(volume).logits, **LAST_BITS)
    assert reloaded.config.id2label == {0: "effusion", 1: "nodule"}


@torch.no_grad()
def test_the_encoder_loads_from_a_classifier_checkpoint(classifier, tmp_path):
    classifier = _with_batch_statistics(classifier)
    volume = torch.randn(1, 1, 8, 8, 8)
    classifier.save_pretrained(tmp_path)
    encoder, report = CT3DVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert set(report["unexpected_keys"]) == {"classifier.weight", "classifier.bias"}
    torch.testing.assert_close(
        classifier.vision_model(volume).pooler_output, encoder.eval()(volume).pooler_output, **LAST_BITS
    )


@torch.no_grad()
def test_a_classifier_starts_from_an_encoder_checkpoint(model, tmp_path):
    model = _with_batch_statistics(model)
    volume = torch.randn(1, 1, 8, 8, 8)
    model.save_pretrained(tmp_path)
    classifier, report = CT3DVisionForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not report["unexpected_keys"]
    torch.testing.assert_close(
        model(volume).pooler_output, classifier.eval().vision_model(volume).pooler_output, **LAST_BITS
    )


def test_gradient_checkpointing_gives_the_same_gradients(classifier, checkpointed_copy):
    thrifty = checkpointed_copy(classifier)
    calls = []
    thrifty.vision_model.stages[1][0].conv1.register_forward_hook(lambda *_: calls.append(1))
    volumes, labels = torch.randn(2, 1, 8, 8, 8), torch.tensor([[1.0, 0.0], [-100.0, 1.0]])
    classifier.train()(volumes, labels=labels).loss.backward()
    thrifty(volumes, labels=labels).loss.backward()
    assert len(calls) > 1, "the block was not recomputed"
    for (name, plain), (_, saved) in zip(
        classifier.named_parameters(), thrifty.named_parameters(), strict=True
    ):
        torch.testing.assert_close(plain.grad, saved.grad, msg=name)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8, 8, 8), r"\(B, C, Z, Y, X\), got shape \(1, 8, 8, 8\)"),
        ((1, 3, 8, 8, 8), r"1 channels, got 3 in \(1, 3, 8, 8, 8\)"),
        ((1, 1, 8, 1, 8), r"at least \(2, 2, 2\) voxels in \(Z, Y, X\), got \(8, 1, 8\)"),
    ],
)
def test_refuses_volumes_it_cannot_read(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape))


def test_fits_four_studies_with_the_stock_trainer(classifier, fit_with_stock_trainer):
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -100.0], [-100.0, 0.0]])
    studies = [{"pixel_values": torch.randn(1, 8, 8, 8), "labels": row} for row in labels]
    losses, eval_loss = fit_with_stock_trainer(classifier, studies, steps=40, learning_rate=0.01)
    assert losses[-1] < 0.1 * losses[0]
    assert eval_loss < 0.1 * losses[0]
    with torch.no_grad():
        logits = classifier.eval()(torch.stack([study["pixel_values"] for study in studies])).logits
    known = labels != -100
    assert torch.equal((logits > 0)[known], labels[known] == 1)


@torch.no_grad()
def test_gated_pooling_exposes_the_weight_of_each_position(tiny_vision_config):
    config = CT3DVisionConfig(hidden_sizes=[8, 16], layers=[1, 1], pooling="gated")
    model = _with_batch_statistics(CT3DVisionModel(config))
    output = model(torch.randn(2, 1, 8, 12, 16))
    assert output.attention_map.shape == (2, 16, 2, 3, 4)
    weighted = (output.attention_map * output.last_hidden_state).sum(dim=(2, 3, 4))
    torch.testing.assert_close(output.pooler_output, weighted)
    assert CT3DVisionModel(tiny_vision_config)(torch.randn(2, 1, 8, 8, 8)).attention_map is None


def test_a_gate_receives_gradients_and_reloads(tmp_path):
    config = CT3DVisionConfig(hidden_sizes=[8, 16], layers=[1, 1], pooling="gated", num_labels=2)
    model = CT3DVisionForImageClassification(config).train()
    model(torch.randn(2, 1, 8, 8, 8), labels=torch.tensor([[1.0, 0.0]] * 2)).loss.backward()
    # The bias of a score shifts all positions alike: its gradient is zero up to rounding.
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert set(dead) <= {"vision_model.pooler.score.bias"}
    model.save_pretrained(tmp_path)
    reloaded, report = CT3DVisionForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(reloaded.vision_model.pooler.gate.weight, model.vision_model.pooler.gate.weight)


@torch.no_grad()
def test_the_keys_of_published_checkpoints_stay(tiny_vision_config):
    names = set(CT3DVisionForImageClassification(tiny_vision_config).state_dict())
    block = {f"conv{n}.weight" for n in (1, 2)} | {
        f"norm{n}.{part}"
        for n in (1, 2)
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert {name.removeprefix("vision_model.stages.0.0.") for name in names if "stages.0.0" in name} == block
    assert {"vision_model.stem.0.weight", "vision_model.stem.1.running_var", "classifier.bias"} <= names
    assert "vision_model.stages.1.0.downsample.1.running_var" in names


@torch.no_grad()
@pytest.mark.parametrize(("block_type", "stem"), [("basic", 8), ("r2plus1d", 8), ("bottleneck", 2)])
def test_hidden_states_are_the_maps_behind_the_stem_and_each_stage(block_type, stem):
    config = CT3DVisionConfig(hidden_sizes=[8, 16, 12], layers=[1, 2, 1], block_type=block_type)
    classifier = _with_batch_statistics(CT3DVisionForImageClassification(config))
    model, volume = classifier.vision_model, torch.randn(2, 1, 8, 12, 16)
    plain, output = model(volume), model(volume, output_hidden_states=True)
    assert plain.hidden_states is None
    assert torch.equal(output.pooler_output, plain.pooler_output)
    assert torch.equal(output.last_hidden_state, plain.last_hidden_state)
    expected = [model.stem(volume)]  # by the modules themselves, whose batch norm is not folded
    for stage in model.stages:
        expected.append(stage(expected[-1]))
    assert [tuple(state.shape[1:]) for state in output.hidden_states] == [
        (stem, 4, 6, 8),
        (8, 4, 6, 8),
        (16, 2, 3, 4),
        (12, 1, 2, 2),
    ]
    torch.testing.assert_close(output.hidden_states, tuple(expected), atol=1e-5, rtol=1e-5)
    assert output.hidden_states[-1] is output.last_hidden_state
    scored = classifier(volume, output_hidden_states=True)
    assert torch.equal(scored.logits, classifier(volume).logits)
    assert all(torch.equal(*pair) for pair in zip(scored.hidden_states, output.hidden_states, strict=True))


@torch.no_grad()
def test_hidden_states_come_where_the_configuration_says_so_and_the_call_does_not_object(classifier):
    volume = torch.randn(2, 1, 8, 8, 8)
    assert classifier(volume).hidden_states is None
    classifier.config.output_hidden_states = True
    assert [tuple(state.shape) for state in classifier(volume).hidden_states] == [
        (2, 8, 4, 4, 4),
        (2, 8, 4, 4, 4),
        (2, 16, 2, 2, 2),
    ]
    assert classifier(volume, output_hidden_states=False).hidden_states is None
    logits, hidden_states = classifier(volume, return_dict=False)
    assert (logits.shape, len(hidden_states)) == ((2, 2), 3)


def test_hidden_states_have_gradients_also_where_they_are_recomputed(model, checkpointed_copy):
    thrifty = checkpointed_copy(model)
    volume, found = torch.randn(2, 1, 8, 8, 8), []
    for tower in (model.train(), thrifty):
        output = tower(volume, output_hidden_states=True)
        output.hidden_states[0].retain_grad()
        (output.hidden_states[1].square().mean() + output.pooler_output.sum()).backward()
        weights = [parameter.grad for parameter in tower.parameters()]
        found.append([output.hidden_states[0].grad, *weights])
        assert tower.stem[1].num_batches_tracked == 1
    for plain, saved in zip(*found, strict=True):
        torch.testing.assert_close(plain, saved)
