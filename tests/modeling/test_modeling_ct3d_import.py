"""Imported weights give, layer by layer, what forward passes give that are written here from the papers."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification, CT3DVisionModel

WIDTHS = (4, 6, 8, 10)


def _conv(weights, name, out, inputs, *kernel):
    weights[f"{name}.weight"] = torch.randn(out, inputs, *kernel) / (inputs * kernel[0] * kernel[1]) ** 0.5


def _norm(weights, name, size):
    weights[f"{name}.weight"] = torch.rand(size) + 0.5
    weights[f"{name}.bias"] = torch.randn(size) / 3
    weights[f"{name}.running_mean"] = torch.randn(size) / 3
    weights[f"{name}.running_var"] = torch.rand(size) + 0.5
    weights[f"{name}.num_batches_tracked"] = torch.tensor(7)


def _video_weights(kind, layers):
    """Names and shapes of torchvision's VideoResNet, narrow."""
    weights = {}
    if kind == "r2plus1d":
        _conv(weights, "stem.0", 5, 3, 1, 7, 7)
        _norm(weights, "stem.1", 5)
        _conv(weights, "stem.3", WIDTHS[0], 5, 3, 1, 1)
        _norm(weights, "stem.4", WIDTHS[0])
    else:
        _conv(weights, "stem.0", WIDTHS[0], 3, 3, 7, 7)
        _norm(weights, "stem.1", WIDTHS[0])
    inputs = WIDTHS[0]
    for stage, (out, depth) in enumerate(zip(WIDTHS, layers, strict=True), start=1):
        for block in range(depth):
            place = f"layer{stage}.{block}"
            mid = inputs * out * 27 // (inputs * 9 + 3 * out)
            for index, size in ((1, inputs), (2, out)):
                if kind == "r2plus1d":
                    _conv(weights, f"{place}.conv{index}.0.0", mid, size, 1, 3, 3)
                    _norm(weights, f"{place}.conv{index}.0.1", mid)
                    _conv(weights, f"{place}.conv{index}.0.3", out, mid, 3, 1, 1)
                else:
                    planar = kind == "mc3" and stage > 1
                    _conv(weights, f"{place}.conv{index}.0", out, size, 1 if planar else 3, 3, 3)
                _norm(weights, f"{place}.conv{index}.1", out)
            if stage > 1 and block == 0:
                _conv(weights, f"{place}.downsample.0", out, inputs, 1, 1, 1)
                _norm(weights, f"{place}.downsample.1", out)
            inputs = out
    weights["fc.weight"], weights["fc.bias"] = torch.randn(7, WIDTHS[-1]), torch.randn(7)
    return weights


def _medicalnet_weights(layers, bottleneck=False, has_shortcuts=True):
    """Names and shapes of MedicalNet's ResNet as its files hold it: ``module.`` in front, one input."""
    weights = {}
    _conv(weights, "conv1", WIDTHS[0], 1, 7, 7, 7)
    _norm(weights, "bn1", WIDTHS[0])
    inputs = WIDTHS[0]
    for stage, (width, depth) in enumerate(zip(WIDTHS, layers, strict=True), start=1):
        out = 4 * width if bottleneck else width
        for block in range(depth):
            place = f"layer{stage}.{block}"
            sizes = [(width, inputs, 1), (width, width, 3), (out, width, 1)]
            if not bottleneck:
                sizes = [(width, inputs, 3), (width, width, 3)]
            for index, (to, size, kernel) in enumerate(sizes, start=1):
                _conv(weights, f"{place}.conv{index}", to, size, kernel, kernel, kernel)
                _norm(weights, f"{place}.bn{index}", to)
            if has_shortcuts and block == 0 and (stage > 1 or inputs != out):
                _conv(weights, f"{place}.downsample.0", out, inputs, 1, 1, 1)
                _norm(weights, f"{place}.downsample.1", out)
            inputs = out
    _conv(weights, "conv_seg.0", inputs, 2, 2, 2, 2)
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def _normed(weights, name, h):
    parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(h, *parts)


def _video_forward(weights, kind, x):
    """Tran et al. 2018, arXiv 1711.11248, section 3 and table 1: the maps after the stem and each stage."""
    if kind == "r2plus1d":
        h = F.conv3d(x, weights["stem.0.weight"], stride=(1, 2, 2), padding=(0, 3, 3))
        h = F.conv3d(_normed(weights, "stem.1", h).relu(), weights["stem.3.weight"], padding=(1, 0, 0))
        h = _normed(weights, "stem.4", h).relu()
    else:
        h = F.conv3d(x, weights["stem.0.weight"], stride=(1, 2, 2), padding=(1, 3, 3))
        h = _normed(weights, "stem.1", h).relu()
    maps = [h]
    for stage in range(1, 5):
        for block in itertools.count():
            place = f"layer{stage}.{block}"
            if f"{place}.conv1.1.weight" not in weights:
                break
            step = 2 if stage > 1 and block == 0 else 1
            planar = kind == "mc3" and stage > 1

            def convolve(h, name, step, planar=planar, place=place):
                name = f"{place}.{name}"
                if kind == "r2plus1d":  # space, then time, with a nonlinearity in between
                    h = F.conv3d(h, weights[f"{name}.0.0.weight"], stride=(1, step, step), padding=(0, 1, 1))
                    h = _normed(weights, f"{name}.0.1", h).relu()
                    h = F.conv3d(h, weights[f"{name}.0.3.weight"], stride=(step, 1, 1), padding=(1, 0, 0))
                elif planar:
                    h = F.conv3d(h, weights[f"{name}.0.weight"], stride=(1, step, step), padding=(0, 1, 1))
                else:
                    h = F.conv3d(h, weights[f"{name}.0.weight"], stride=step, padding=1)
                return _normed(weights, f"{name}.1", h)

            skip = h
            if f"{place}.downsample.0.weight" in weights:
                stride = (1 if planar else step, step, step)
                skip = F.conv3d(h, weights[f"{place}.downsample.0.weight"], stride=stride)
                skip = _normed(weights, f"{place}.downsample.1", skip)
            h = (convolve(convolve(h, "conv1", step).relu(), "conv2", 1) + skip).relu()
        maps.append(h)
    return maps


def _medicalnet_forward(weights, x, dilations=(1, 1, 2, 4)):
    """Chen et al. 2019, arXiv 1904.00625, section 3.3, on the residual blocks of arXiv 1512.03385."""
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    h = _normed(weights, "bn1", F.conv3d(x, weights["conv1.weight"], stride=2, padding=3)).relu()
    h = F.max_pool3d(h, 3, stride=2, padding=1)
    maps = [h]
    for stage, dilation in enumerate(dilations, start=1):
        for block in itertools.count():
            place = f"layer{stage}.{block}"
            if f"{place}.conv1.weight" not in weights:
                break
            step = 2 if stage > 1 and block == 0 and dilation == 1 else 1
            last = 3 if f"{place}.conv3.weight" in weights else 2
            strided = 2 if last == 3 else 1
            out = h
            for index in range(1, last + 1):
                kernel = weights[f"{place}.conv{index}.weight"]
                wide = kernel.shape[-1] == 3
                out = F.conv3d(
                    out,
                    kernel,
                    stride=step if index == strided else 1,
                    padding=dilation if wide else 0,
                    dilation=dilation if wide else 1,
                )
                out = _normed(weights, f"{place}.bn{index}", out)
                out = out.relu() if index < last else out
            skip = h
            if f"{place}.downsample.0.weight" in weights:
                skip = F.conv3d(h, weights[f"{place}.downsample.0.weight"], stride=step)
                skip = _normed(weights, f"{place}.downsample.1", skip)
            elif out.shape != h.shape:  # type A
                skip = torch.zeros_like(out)
                skip[:, : h.shape[1]] = F.avg_pool3d(h, 1, stride=step)
            h = (out + skip).relu()
        maps.append(h)
    return maps


@torch.no_grad()
def _maps_of(model, volume):
    """What enters the first block and what leaves each stage."""
    maps = []
    model.stages[0][0].register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0].clone()))
    for stage in model.stages:
        stage[-1].register_forward_hook(lambda *call: maps.append(call[-1].clone()))
    output = model.eval()(volume)
    torch.testing.assert_close(output.pooler_output, maps[-1].mean(dim=(2, 3, 4)))
    return maps


def _compare(model, volume, expected):
    got = _maps_of(model, volume)
    assert len(got) == len(expected) == 5
    for ours, theirs in zip(got, expected, strict=True):
        assert theirs.std() > 0.05, "a dead layer proves nothing"
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["basic", "mc3", "r2plus1d"])
@pytest.mark.parametrize("layers", [(2, 1, 1, 2), (1, 2, 2, 1)])
def test_video_resnets_give_what_the_paper_describes_layer_by_layer(kind, layers):
    weights = _video_weights(kind, layers)
    model = CT3DVisionModel.from_video_resnet(weights, num_channels=3, layers=list(layers))
    assert not any(module.training for module in model.modules())
    assert model.config.block_type == kind
    volume = torch.randn(2, 3, 9, 18, 14)
    _compare(model, volume, _video_forward(weights, kind, volume))


@pytest.mark.parametrize(("bottleneck", "has_shortcuts"), [(False, True), (False, False), (True, True)])
def test_medicalnet_gives_what_the_paper_describes_layer_by_layer(bottleneck, has_shortcuts):
    weights = _medicalnet_weights((1, 2, 1, 2), bottleneck, has_shortcuts)
    model = CT3DVisionModel.from_video_resnet({"state_dict": weights, "epoch": 3}, layers=[1, 2, 1, 2])
    assert model.config.dilations == [1, 1, 2, 4]
    assert model.config.shortcut == ("conv" if has_shortcuts else "pad")
    volume = torch.randn(2, 1, 37, 42, 33)
    _compare(model, volume, _medicalnet_forward(weights, volume))


def test_medicalnet_without_dilation_halves_the_last_stages():
    weights = _medicalnet_weights((1, 1, 1, 1))
    model = CT3DVisionModel.from_video_resnet(weights, dilations=None)
    volume = torch.randn(2, 1, 37, 42, 33)
    _compare(model, volume, _medicalnet_forward(weights, volume, dilations=(1, 1, 1, 1)))


@pytest.mark.parametrize("kind", ["basic", "r2plus1d"])
@pytest.mark.parametrize("num_channels", [1, 2])
@torch.no_grad()
def test_a_folded_stem_sees_equal_windows_as_it_saw_a_gray_video(kind, num_channels):
    weights = _video_weights(kind, (1, 1, 1, 1))
    model = CT3DVisionModel.from_video_resnet(weights, num_channels=num_channels).eval()
    gray = torch.randn(1, 1, 9, 18, 14)
    expected = _video_forward(weights, kind, gray.expand(-1, 3, -1, -1, -1))[-1]
    got = model(gray.expand(-1, num_channels, -1, -1, -1)).last_hidden_state
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["basic", "r2plus1d"])
def test_a_replaced_stem_is_new_but_for_its_batch_norm(kind):
    weights = _video_weights(kind, (1, 1, 1, 1))
    model = CT3DVisionModel.from_video_resnet(weights, stem="replace", num_channels=2)
    assert model.stem[0].weight.shape == (WIDTHS[0], 2, 2, 2, 2)
    last = "stem.4" if kind == "r2plus1d" else "stem.1"
    assert torch.equal(model.stem[1].bias, weights[f"{last}.bias"])
    assert torch.equal(model.stem[1].running_var, weights[f"{last}.running_var"])
    assert torch.equal(model.stages[3][0].norm2.weight, weights["layer4.0.conv2.1.weight"])
    lite = {"stem_kernel_size": [4, 4, 4], "stem_stride": [4, 4, 4]}
    assert CT3DVisionModel.from_video_resnet(weights, stem="replace", **lite).stem[0].stride == (4, 4, 4)


@pytest.mark.parametrize(("kernel", "stride"), [(2, (2, 2, 2)), (4, (4, 4, 4))])
def test_reads_the_published_ct_network_with_its_own_stem(kernel, stride):
    weights = _video_weights("basic", (1, 1, 1, 1))
    weights["stem.0.weight"] = torch.randn(WIDTHS[0], 1, kernel, kernel, kernel)
    model = CT3DVisionModel.from_video_resnet(weights)
    assert model.stem[0].stride == stride
    assert torch.equal(model.stem[0].weight, weights["stem.0.weight"])


def test_a_classifier_starts_from_video_weights_too_and_gets_a_new_head():
    weights = _video_weights("basic", (1, 1, 1, 1))
    model = CT3DVisionForImageClassification.from_video_resnet(
        weights, id2label={0: "effusion"}, pooling="gated"
    )
    assert torch.equal(model.vision_model.stages[0][0].conv1.weight, weights["layer1.0.conv1.0.weight"])
    assert model.classifier.weight.shape == (1, WIDTHS[-1])
    assert model.vision_model.pooler.score.weight.shape[0] == WIDTHS[-1]


def test_refuses_a_name_it_does_not_know():
    weights = _video_weights("basic", (1, 1, 1, 1)) | {"layer1.0.se.weight": torch.ones(1)}
    with pytest.raises(KeyError, match=r"got 'layer1\.0\.se\.weight'"):
        CT3DVisionModel.from_video_resnet(weights)


def test_refuses_weights_that_have_no_place():
    weights = _video_weights("basic", (1, 1, 1, 1))
    _conv(weights, "layer2.0.conv3.0", 6, 6, 1, 1, 1)
    with pytest.raises(KeyError, match=r"1 unused \(\['stages\.1\.0\.conv3\.weight'\]\) and 0 missing"):
        CT3DVisionModel.from_video_resnet(weights)


def test_refuses_missing_weights():
    weights = _video_weights("basic", (1, 1, 1, 1))
    del weights["layer3.0.conv2.1.running_var"]
    with pytest.raises(
        KeyError, match=r"0 unused \(\[\]\) and 1 missing \(\['stages\.2\.0\.norm2\.running_var"
    ):
        CT3DVisionModel.from_video_resnet(weights)


@pytest.mark.parametrize(("kept", "shown"), [("stem", r"\['stem'\]"), ("layer", r"\['stages'\]")])
def test_refuses_weights_without_a_stem_or_a_first_block(kept, shown):
    weights = {n: t for n, t in _video_weights("basic", (1, 1, 1, 1)).items() if n.startswith(kept)}
    with pytest.raises(KeyError, match=rf"must hold a stem and layer1\.0, got {shown}"):
        CT3DVisionModel.from_video_resnet(weights)


def test_refuses_a_tensor_of_another_shape():
    weights = _video_weights("basic", (1, 1, 1, 1))
    weights["layer3.0.conv2.0.weight"] = torch.zeros(8, 5, 3, 3, 3)
    with pytest.raises(RuntimeError, match=r"torch\.Size\(\[8, 5, 3, 3, 3\]\)"):
        CT3DVisionModel.from_video_resnet(weights)


def test_refuses_two_networks_in_one():
    weights = _medicalnet_weights((1, 1, 1, 1))
    with pytest.raises(ValueError, match=rf"got {len(weights)} of {len(weights) + 1}"):
        CT3DVisionModel.from_video_resnet(weights | {"bn1.weight": torch.ones(4)})


def test_refuses_a_stem_of_unknown_stride():
    weights = _video_weights("basic", (1, 1, 1, 1)) | {"stem.0.weight": torch.zeros(4, 3, 5, 5, 5)}
    with pytest.raises(ValueError, match=r"got \(5, 5, 5\)\. Use stem='replace'"):
        CT3DVisionModel.from_video_resnet(weights)


def test_refuses_another_treatment_of_the_stem():
    with pytest.raises(ValueError, match="stem must be fold or replace, got 'mean'"):
        CT3DVisionModel.from_video_resnet(_video_weights("basic", (1, 1, 1, 1)), stem="mean")


def _without(weights, part):
    return {name: tensor for name, tensor in weights.items() if part not in name}


@pytest.mark.parametrize(
    ("part", "shown"), [("layer4.", r"\[2, 2, 2\]"), ("layer4.1.", r"\[2, 2, 2, 1\]")], ids=["stage", "block"]
)
def test_refuses_a_network_from_which_a_stage_or_a_block_is_missing(part, shown):
    weights = _video_weights("basic", (2, 2, 2, 2))
    assert CT3DVisionModel.from_video_resnet(weights).config.layers == [2, 2, 2, 2]
    with pytest.raises(ValueError, match=rf"known depth, got {shown} blocks per stage"):
        CT3DVisionModel.from_video_resnet(_without(weights, part))


def test_reads_another_depth_if_it_is_named():
    weights = _without(_video_weights("basic", (1, 1, 1, 1)), "layer4.")
    model = CT3DVisionModel.from_video_resnet(weights, layers=[1, 1, 1])
    assert torch.equal(model.stages[2][0].norm2.bias, weights["layer3.0.conv2.1.bias"])
    with pytest.raises(KeyError, match=r"0 unused \(\[\]\) and 10 missing \(\['stages\.2\.1"):
        CT3DVisionModel.from_video_resnet(weights, layers=[1, 1, 2])


@pytest.mark.parametrize("part", ["layer3.", "layer3.0.conv2.1.weight"])
def test_refuses_a_gap_between_the_stages(part):
    weights = _without(_video_weights("basic", (1, 1, 1, 1)), part)
    with pytest.raises(KeyError, match=r"got no whole layer3\.0 in 4"):
        CT3DVisionModel.from_video_resnet(weights)


def test_only_medicalnet_may_lack_the_weights_of_its_shortcuts():
    weights = _without(_video_weights("basic", (1, 1, 1, 1)), "downsample")
    with pytest.raises(KeyError, match=r"15 missing \(\['stages\.1\.0\.downsample"):
        CT3DVisionModel.from_video_resnet(weights)


def test_refuses_what_only_resembles_a_head():
    weights = _video_weights("basic", (1, 1, 1, 1)) | {"fc.scale": torch.zeros(1)}
    with pytest.raises(KeyError, match=r"got 'fc\.scale'"):
        CT3DVisionModel.from_video_resnet(weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_weights_that_are_not_finite(value):
    weights = _video_weights("basic", (1, 1, 1, 1))
    weights["layer2.0.conv1.0.weight"][0, 0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"NaN or infinity in 'layer2\.0\.conv1\.0\.weight'"):
        CT3DVisionModel.from_video_resnet(weights)


@pytest.mark.parametrize(
    ("given", "shown"),
    [("r3d.pth", "got str"), (None, "got NoneType"), ({"epoch": 3}, "got int at 'epoch'")],
    ids=str,
)
def test_refuses_what_holds_no_weights(given, shown):
    with pytest.raises(TypeError, match=f"must map names to tensors, {shown}"):
        CT3DVisionModel.from_video_resnet(given)


def test_a_network_with_the_names_of_medicalnet_and_classes_must_be_described():
    weights = {n.removeprefix("module."): t for n, t in _medicalnet_weights((1, 1, 1, 1)).items()}
    weights = _without(weights, "conv_seg") | {"fc.weight": torch.zeros(3, 10), "fc.bias": torch.zeros(3)}
    shape = {"dilations": None, "stem_stride": [1, 2, 2], "stem_max_pool": False}
    for name in shape:
        given = {key: value for key, value in shape.items() if key != name}
        with pytest.raises(ValueError, match=f"got none for {name}\\."):
            CT3DVisionModel.from_video_resnet(weights, **given)
    model = CT3DVisionModel.from_video_resnet(weights, **shape)
    assert model.stem[0].stride == (1, 2, 2)
    assert len(model.stem) == 3
    assert model.config.dilations is None
    with pytest.raises(ValueError, match="dilations must be given for conv1 with fc, got none for dilations"):
        CT3DVisionModel.from_video_resnet(weights, stem="replace")
    replaced = CT3DVisionModel.from_video_resnet(weights, stem="replace", dilations=[1, 1, 2, 2])
    assert replaced.stages[3][0].conv1.dilation == (2, 2, 2)


def test_the_weights_have_the_precision_of_the_configuration():
    weights = _video_weights("basic", (1, 1, 1, 1))
    model = CT3DVisionModel.from_video_resnet(weights, dtype="bfloat16")
    assert model.dtype == model.config.dtype == torch.bfloat16
    torch.testing.assert_close(model.stem[1].bias, weights["stem.1.bias"].bfloat16())
    assert CT3DVisionModel.from_video_resnet(weights).dtype == torch.float32
