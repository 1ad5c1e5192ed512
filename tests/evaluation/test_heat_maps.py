import math
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.data.file_metadata import metadata_fields
from radtower.evaluation.heat_maps import (
    FeatureGrid,
    HeatMap,
    check_map_path,
    classifier_score,
    explain_scan,
    feature_grid,
    load_explainable,
    peak_voxel,
    to_scan_grid,
    trace_evidence,
    write_heat_map,
    zero_shot_score,
)
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification, CT3DVisionModel
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, read_volume

SPACING_MM = (3.0, 2.0, 2.5)
OBLIQUE = np.array(  # axes in the order z, x, y of the patient, two of them reversed, tilted by 10 degrees
    [[0.0, -1.7, 0.3, 20.0], [0.0, 0.3, 1.7, -35.5], [-2.5, 0.0, 0.0, 140.25], [0.0, 0.0, 0.0, 1.0]]
)


def _classifier(**config):
    torch.manual_seed(1)
    settings = {"hidden_sizes": [4, 8, 12], "layers": [1, 1, 1], "id2label": {0: "effusion", 1: "nodule"}}
    model = CT3DVisionForImageClassification(CT3DVisionConfig(**settings | config)).eval()
    torch.nn.init.normal_(model.classifier.bias)
    return model


def _volume(shape=(20, 30, 24), spacing_mm=SPACING_MM, seed=0):
    array = np.random.default_rng(seed).integers(-1000, 600, shape).astype(np.int16)
    return Volume(array, spacing_mm, affine_from_spacing(spacing_mm), "LPS", VolumeSource("t", "none"))


def _processor(**settings):
    return CT3DImageProcessor(**{"spacing_mm": (3.0, 3.0, 3.0), "size": (16, 24, 16)} | settings)


def test_the_map_of_an_average_pool_is_the_class_activation_map():
    model, scan = _classifier(), torch.randn(1, 1, 16, 24, 16)
    with torch.no_grad():
        features = model.vision_model(scan).last_hidden_state[0]
        logits = model(scan).logits[0]
    num_places = features[0].numel()
    assert num_places == 2 * 3 * 2
    for column, key in enumerate(("effusion", "nodule")):
        evidence = trace_evidence(model.vision_model, scan, classifier_score(model, key))
        map_of_zhou = torch.einsum("e,ezyx->zyx", model.classifier.weight[column], features).detach()
        torch.testing.assert_close(evidence.contributions * num_places, map_of_zhou)
        # Zhou et al. 2016, equation 1: the logit is the mean of the map, plus the bias.
        torch.testing.assert_close(map_of_zhou.mean() + model.classifier.bias[column], logits[column])
        assert evidence.logit == pytest.approx(float(logits[column]), abs=1e-6)
        assert evidence.contributions.min() < 0 < evidence.contributions.max()


def test_the_map_of_a_maximum_is_where_the_maxima_are_taken_from():
    model, scan = _classifier(pooling="max"), torch.randn(1, 1, 16, 24, 16)
    evidence = trace_evidence(model.vision_model, scan, classifier_score(model, "nodule"))
    with torch.no_grad():
        features = model.vision_model(scan).last_hidden_state[0].flatten(1)
    expected = torch.zeros(features.shape[1])
    for channel, weight in zip(features, model.classifier.weight[1].detach(), strict=True):
        expected[channel.argmax()] += weight * channel.max()
    torch.testing.assert_close(evidence.contributions.flatten(), expected)
    total = evidence.contributions.sum() + model.classifier.bias[1].detach()
    assert float(total) == pytest.approx(evidence.logit, abs=1e-5)


def test_the_map_of_gated_pooling_adds_up_to_the_logit():
    model, scan = _classifier(pooling="gated"), torch.randn(1, 1, 16, 24, 16)
    torch.nn.init.normal_(model.vision_model.pooler.score.weight, std=3.0)
    evidence = trace_evidence(model.vision_model, scan, classifier_score(model, "nodule"))
    with torch.no_grad():
        output = model.vision_model(scan)
        weighted = output.last_hidden_state[0] * output.attention_map[0]
        expected = torch.einsum("e,ezyx->zyx", model.classifier.weight[1], weighted)
    torch.testing.assert_close(evidence.contributions, expected)
    assert evidence.contributions.std() > 1e-3
    total = float(evidence.contributions.sum()) + model.classifier.bias[1].item()
    assert total == pytest.approx(evidence.logit, abs=1e-5)


@pytest.mark.parametrize("pooling", ["avg", "gated"])
@pytest.mark.parametrize("stage", [0, 1])
def test_the_gradient_of_an_earlier_stage_is_that_of_the_logit(stage, pooling):
    model, scan = _classifier(pooling=pooling), torch.randn(1, 1, 16, 24, 16)
    evidence = trace_evidence(model.vision_model, scan, classifier_score(model, "effusion"), stage)
    place = (2, 1, 2, 1)

    def nudge(module, inputs, output):
        nudged = output.clone()
        nudged[(0, *place)] += 1e-2
        return nudged

    handle = model.vision_model.stages[stage][-1].register_forward_hook(nudge)
    with torch.no_grad():
        nudged = model(scan).logits[0, 0]
        handle.remove()
        slope = float(nudged - model(scan).logits[0, 0]) / 1e-2
    assert float(evidence.gradients[place]) == pytest.approx(slope, rel=0.05, abs=1e-4)
    assert evidence.gradients.shape == evidence.activations.shape


def test_tracing_leaves_the_model_as_it_was():
    model, scan = _classifier(), torch.randn(1, 1, 16, 24, 16)
    with torch.no_grad():
        before = model(scan).logits
        trace_evidence(model.vision_model, scan, classifier_score(model, "nodule"))
        torch.testing.assert_close(model(scan).logits, before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not model.vision_model.stages[-1][-1]._forward_hooks


def test_the_hook_is_removed_when_the_score_fails():
    model = _classifier()

    def fail(pooled):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trace_evidence(model.vision_model, torch.randn(1, 1, 16, 24, 16), fail)
    assert not model.vision_model.stages[-1][-1]._forward_hooks


def test_training_mode_and_batches_are_refused():
    model = _classifier()
    score = classifier_score(model, "nodule")
    with pytest.raises(ValueError, match="must hold 1 scan, got 2"):
        trace_evidence(model.vision_model, torch.randn(2, 1, 16, 24, 16), score)
    with pytest.raises(ValueError, match="evaluation mode, got training mode"):
        trace_evidence(model.vision_model.train(), torch.randn(1, 1, 16, 24, 16), score)


def test_a_finding_the_classifier_does_not_have_is_refused():
    with pytest.raises(KeyError, match="one of effusion, nodule, got 'hernia'"):
        classifier_score(_classifier(), "hernia")


@pytest.mark.parametrize("similarity", ["cosine", "legacy_dot"])
def test_the_evidence_for_a_phrase_adds_up_to_its_zero_shot_score(tiny_medclip, similarity):
    tiny_medclip.config.similarity = similarity
    tiny_medclip.visual_projection.weight.data *= 50  # a length that the dot product shows
    scan = torch.randn(1, 1, 8, 8, 8)
    evidence = trace_evidence(tiny_medclip.vision_model, scan, zero_shot_score(tiny_medclip, "nodule"))
    expected = tiny_medclip.zero_shot(scan, ["nodule"])[0, 0]
    assert torch.sigmoid(torch.tensor(evidence.logit)) == pytest.approx(float(expected), abs=1e-6)
    assert abs(evidence.logit) > 1e-3
    # The projection is linear and has no bias: nothing is left over.
    assert float(evidence.contributions.sum()) == pytest.approx(evidence.logit, rel=1e-4)
    assert tiny_medclip.logit_scale.log_value.grad is None


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        ({}, FeatureGrid((0.5, 0.5, 0.5), (8, 8, 8))),
        (
            {"stem_kernel_size": [4, 4, 4], "stem_stride": [4, 4, 4]},
            FeatureGrid((1.5, 1.5, 1.5), (16, 16, 16)),
        ),
        ({"block_type": "mc3"}, FeatureGrid((0.5, 0.5, 0.5), (2, 8, 8))),
        ({"block_type": "r2plus1d", "shortcut": "pad"}, FeatureGrid((0.5, 0.5, 0.5), (8, 8, 8))),
        ({"block_type": "bottleneck", "hidden_sizes": [4, 4, 4]}, FeatureGrid((0.5, 0.5, 0.5), (8, 8, 8))),
        ({"dilations": [1, 1, 2]}, FeatureGrid((0.5, 0.5, 0.5), (4, 4, 4))),
        ({"stem_kernel_size": [3, 7, 7], "stem_stride": [1, 2, 2]}, FeatureGrid((0, 0, 0), (4, 8, 8))),
    ],
)
def test_a_feature_voxel_is_centered_on_its_receptive_field(config, grid):
    settings = {"hidden_sizes": [1, 1, 1], "layers": [1, 2, 1]} | config
    model = CT3DVisionModel(CT3DVisionConfig(**settings)).eval()
    assert feature_grid(model) == grid
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    scan = torch.rand(1, 1, 136, 144, 152, requires_grad=True)
    features = model(scan).last_hidden_state
    voxel = tuple(size // 2 for size in features.shape[2:])
    features[(0, 0, *voxel)].backward()
    reached = scan.grad[0, 0].nonzero().double()
    middle = (reached.amin(dim=0) + reached.amax(dim=0)) / 2
    expected = [first + stride * at for first, stride, at in zip(grid.first, grid.stride, voxel, strict=True)]
    assert middle.tolist() == pytest.approx(expected)
    assert (reached.amin(dim=0) > 0).all()  # a receptive field cut off by the border has another middle


def test_every_layer_moves_the_grid_by_its_own_stride():
    tower = SimpleNamespace(
        stem=torch.nn.Sequential(torch.nn.Conv3d(1, 1, 2, 2), torch.nn.MaxPool3d(3, 2, 1)),
        stages=[torch.nn.Sequential(torch.nn.Conv3d(1, 1, (1, 2, 3), (1, 2, 4)))],
    )
    # Y: 0.5 + 4 * 0.5; X: without padding the last kernel is centered on its second voxel, 0.5 + 4 * 1.
    assert feature_grid(tower) == FeatureGrid((0.5, 2.5, 4.5), (4, 8, 16))


def test_no_graph_is_kept_before_the_feature_map():
    model, has_graph = _classifier(), []
    model.vision_model.stages[0][0].register_forward_hook(
        lambda module, inputs, output: has_graph.append(output.requires_grad)
    )
    trace_evidence(model.vision_model, torch.randn(1, 1, 16, 24, 16), classifier_score(model, "nodule"))
    assert has_graph == [False]


def test_an_earlier_stage_has_its_own_grid():
    assert feature_grid(_classifier().vision_model, 1) == FeatureGrid((0.5, 0.5, 0.5), (4, 4, 4))
    assert feature_grid(_classifier().vision_model, 0) == FeatureGrid((0.5, 0.5, 0.5), (2, 2, 2))


@pytest.mark.parametrize(
    ("center", "seen_expected"),
    # The crop is 36 x 42 x 90 mm, the scan 40 x 45 x 96 mm: a voxel is seen if its center is in the crop.
    [((9.5, 14.5, 11.5), ((1, 19), (1, 29), (1, 23))), ((6.5, 20.5, 11.5), ((0, 16), (7, 30), (1, 23)))],
)
def test_interpolation_back_to_the_scan_restores_a_linear_field(center, seen_expected):
    """A field that is linear in millimeters must come back, through crop, spacing and feature grid."""
    volume = _volume((20, 30, 24), (2.0, 1.5, 4.0))
    processor = _processor(spacing_mm=(4.0, 2.0, 3.0), size=(9, 21, 30))
    grid = FeatureGrid((0.5, 1.0, 0.0), (2, 3, 5))
    slope = np.array([0.3, -0.2, 0.1])
    counts = (4, 7, 6)
    fields = []
    for axis in range(3):
        voxel = grid.first[axis] + grid.stride[axis] * np.arange(counts[axis])
        fields.append((voxel - (processor.size[axis] - 1) / 2) * processor.spacing_mm[axis] * slope[axis])
    values = fields[0][:, None, None] + fields[1][None, :, None] + fields[2][None, None]
    array, seen = to_scan_grid(values, grid, processor, volume, center)
    assert seen == seen_expected
    mm = [
        (np.arange(n) - middle) * spacing
        for n, middle, spacing in zip(volume.array_hu.shape, center, volume.spacing_mm, strict=True)
    ]
    expected = sum(np.meshgrid(*(mm[axis] * slope[axis] for axis in range(3)), indexing="ij"))
    # Between the outermost feature voxels.
    inner = (slice(seen[0][0] + 2, seen[0][1] - 4), slice(seen[1][0] + 2, 27), slice(1, 20))
    np.testing.assert_allclose(array[inner], expected[inner], atol=1e-5)
    assert array.dtype == np.float32
    outside = np.ones(array.shape, bool)
    outside[tuple(slice(*pair) for pair in seen)] = False
    assert not array[outside].any()
    assert array[~outside].all()
    # Beyond the outermost feature voxel the map stays as it is there.
    last = seen[0][1] - 1
    assert array[last, 10, 10] == array[last - 1, 10, 10] != array[last - 5, 10, 10]


def test_a_crop_between_two_voxels_of_the_scan_is_refused():
    volume, processor = _volume((8, 8, 8), (3.0, 9.0, 3.0)), _processor(size=(8, 1, 8))
    with pytest.raises(ValueError, match="got 3 mm between voxels of 9 mm along Y"):
        to_scan_grid(
            np.ones((1, 1, 1)), FeatureGrid((0, 0, 0), (1, 1, 1)), processor, volume, (3.5, 3.5, 3.5)
        )


def test_interpolation_turns_a_ras_map_around():
    volume = _volume((8, 8, 8), (3.0, 3.0, 3.0))
    values = np.random.default_rng(0).normal(size=(4, 4, 4))
    grid = FeatureGrid((0.5, 0.5, 0.5), (2, 2, 2))
    lps, _ = to_scan_grid(values, grid, _processor(size=(8, 8, 8)), volume, (3.5, 3.5, 3.5))
    turned = _processor(size=(8, 8, 8), orientation="RAS")
    ras, _ = to_scan_grid(values, grid, turned, volume, (3.5, 3.5, 3.5))
    np.testing.assert_allclose(ras, lps[:, ::-1, ::-1], atol=1e-6)
    assert not np.allclose(ras, lps)
    off_center, _ = to_scan_grid(values, grid, turned, volume, (3.5, 1.5, 5.5))
    np.testing.assert_allclose(off_center[:, :6, 2:], ras[:, 2:, :6], atol=1e-6)


def _bright_spot_model():
    """Its logit is the brightest place of a scan; nothing else counts."""
    model = _classifier(pooling="max", stem_kernel_size=[2, 2, 2])
    bell = torch.tensor([0.5, 1.0, 0.5])
    with torch.no_grad():
        model.classifier.weight.fill_(1.0)
        for module in model.modules():
            if isinstance(module, torch.nn.Conv3d):
                is_bell = module.kernel_size == (3, 3, 3)
                module.weight[:] = torch.einsum("z,y,x->zyx", bell, bell, bell) if is_bell else 1.0
    return model


def test_a_bright_spot_in_the_scan_is_where_the_map_peaks():
    """Through processor, network and back: the only bright place of a scan must hold the peak."""
    model = _bright_spot_model()
    array = np.full((30, 40, 50), -1000, np.int16)
    volume = Volume(
        array, (5.0, 3.0, 2.0), affine_from_spacing((5.0, 3.0, 2.0)), "LPS", VolumeSource("t", "n")
    )
    processor = _processor(spacing_mm=(2.5, 2.5, 2.5), size=(64, 48, 40))
    for z, y, x in ((9, 13, 25), (20, 28, 17)):
        array[:] = -1000
        array[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = 100
        heat_map = explain_scan(model, processor, volume, "nodule")
        distance_mm = (np.array(heat_map.peak) - (z, y, x)) * volume.spacing_mm
        assert np.abs(distance_mm).max() <= 10  # half a feature voxel of 8 x 2.5 mm
        assert heat_map.array[heat_map.peak] > 0


def _chest(has_lungs=True):
    """A body of 250 x 160 x 140 mm; the middle of its lungs lies 55, 15 and 11 mm off that of the scan."""
    array = np.full((50, 60, 80), -1000, np.int16)
    array[:, 3:57, 5:75] = 20
    if has_lungs:
        array[25:47, 20:51, 25:66] = -850
    spacing_mm = (5.0, 3.0, 2.0)
    return Volume(array, spacing_mm, affine_from_spacing(spacing_mm), "LPS", VolumeSource("t", "n"))


@pytest.mark.parametrize("orientation", ["LPS", "RAS"])
def test_the_map_of_a_crop_around_the_lungs_lies_where_the_crop_does(orientation):
    model, volume = _bright_spot_model(), _chest()
    processor = _processor(
        spacing_mm=(2.5, 2.5, 2.5),
        size=(64, 48, 40),
        windows_hu=[(500, 1500)],  # neither lung nor tissue is bright
        crop="lung",
        orientation=orientation,
    )
    assert processor.center(volume) == pytest.approx((35.5, 35.0, 45.0), abs=0.6)
    for z, y, x in ((35, 28, 50), (40, 43, 55)):
        volume.array_hu[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = 1500
        heat_map = explain_scan(model, processor, volume, "nodule")
        volume.array_hu[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = -850
        distance_mm = (np.array(heat_map.peak) - (z, y, x)) * volume.spacing_mm
        assert np.abs(distance_mm).max() <= 10  # half a feature voxel of 8 x 2.5 mm
        # 160 x 120 x 100 mm around the lungs, cut where the scan ends.
        (top, bottom), (front, back), (right, left) = heat_map.seen
        assert (top, bottom) == pytest.approx((20, 50), abs=1)
        assert (front, back) == pytest.approx((15, 55), abs=1)
        assert (right, left) == pytest.approx((20, 70), abs=1)
        assert heat_map.seen_share == pytest.approx(30 / 50 * 40 / 60 * 50 / 80, rel=0.1)


def test_the_middle_of_a_scan_is_looked_for_once():
    """And the model sees what ``preprocess`` shows it, of a scan without lungs, too."""
    model, processor, volume = _classifier(), _processor(crop="lung"), _chest(has_lungs=False)
    with pytest.warns(UserWarning, match="crop is 'lung' and there is no lung") as warned:
        heat_map = explain_scan(model, processor, volume, "nodule")
    assert len(warned) == 1
    processor.crop = "center"
    with torch.no_grad():
        logit = float(model(processor(volume)["pixel_values"]).logits[0, 1])
    assert heat_map.logit == pytest.approx(logit, abs=1e-5)
    assert heat_map.seen == explain_scan(model, processor, volume, "nodule").seen


def test_a_heat_map_says_what_it_is():
    model, processor, volume = _classifier(), _processor(), _volume()
    heat_map = explain_scan(model, processor, volume, "nodule")
    with torch.no_grad():
        logit = float(model(processor(volume)["pixel_values"]).logits[0, 1])
    assert heat_map.logit == pytest.approx(logit, abs=1e-5)
    assert heat_map.score == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
    assert heat_map.logit - heat_map.total == pytest.approx(model.classifier.bias[1].item(), abs=1e-5)
    assert heat_map.feature_mm == (24.0, 24.0, 24.0)
    assert heat_map.array.shape == (20, 30, 24)
    # The crop is 48 x 72 x 48 mm of a scan of 60 x 60 x 60 mm.
    assert heat_map.seen == ((2, 18), (0, 30), (2, 22))
    assert heat_map.seen_share == pytest.approx(16 / 20 * 20 / 24)
    assert heat_map.array[heat_map.peak] == heat_map.array.max()
    assert heat_map.strongest >= heat_map.array.max() - 1e-6
    z, y, x = heat_map.peak
    assert heat_map.peak_mm == pytest.approx((-2.5 * x, -2.0 * y, 3.0 * z))


def test_the_peak_of_a_plateau_is_its_middle():
    array = np.zeros((5, 6, 7), np.float32)
    array[1:4, 2, 3:6] = 2.0
    seen = ((1, 5), (2, 6), (0, 7))
    assert peak_voxel(array, seen) == (2, 2, 4)
    array[4, 5, 6] = 3.0
    assert peak_voxel(array, seen) == (4, 5, 6)
    array[0, 5, 6] = array[4, 1, 6] = 4.0  # outside
    assert peak_voxel(array, seen) == (4, 5, 6)


def test_a_map_that_speaks_only_against_a_finding_peaks_where_the_model_looked():
    """Outside it is 0, which is more than any evidence against the finding."""
    model, processor = _classifier(), _processor(size=(8, 16, 8))
    with torch.no_grad():
        model.classifier.weight[1] = -1.0  # the feature map is never negative
    heat_map = explain_scan(model, processor, _volume(), "nodule")
    assert heat_map.array.max() == 0
    assert heat_map.seen == ((6, 14), (3, 27), (7, 17))
    assert all(first <= at < stop for at, (first, stop) in zip(heat_map.peak, heat_map.seen, strict=True))
    assert heat_map.peak_value == heat_map.array[6:14, 3:27, 7:17].max() < 0


def _write_scan(path, affine):
    array = np.random.default_rng(0).integers(-1000, 600, (18, 22, 26)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


@pytest.mark.parametrize(
    "affine",
    [OBLIQUE, np.diag([1.5, 2.0, 3.0, 1.0]), np.diag([-1.5, -2.0, 3.0, 1.0])],
    ids=["oblique", "RAS", "LPS"],
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_the_map_has_the_grid_of_the_file(tmp_path, affine, suffix):
    scan, path = tmp_path / "scan.nii.gz", tmp_path / f"map{suffix}"
    _write_scan(scan, affine)
    heat_map = explain_scan(_classifier(), _processor(), read_volume(scan), "nodule")
    write_heat_map(heat_map, path, scan)
    source, written = nibabel.load(scan), nibabel.load(path)
    assert written.shape == source.shape == (18, 22, 26)
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-4)
    np.testing.assert_allclose(written.header.get_zooms(), source.header.get_zooms(), atol=1e-5)
    assert written.get_data_dtype() == np.float32
    # The same value at the same place of the patient.
    values = written.get_fdata()
    assert values.max() == pytest.approx(heat_map.array.max())
    for z, y, x in (heat_map.peak, (3, 4, 5), (9, 2, 11)):
        position = heat_map.volume.affine @ (x, y, z, 1.0)
        i, j, k = np.rint(np.linalg.inv(source.affine) @ position)[:3].astype(int)
        assert values[i, j, k] == pytest.approx(float(heat_map.array[z, y, x]), abs=1e-6)


def test_the_map_of_an_nrrd_has_its_grid(tmp_path):
    scan, path = tmp_path / "scan.nrrd", tmp_path / "map.nrrd"
    image = sitk.GetImageFromArray(
        np.random.default_rng(0).integers(-1000, 600, (18, 22, 26)).astype(np.int16)
    )
    image.SetSpacing((1.5, 2.0, 3.0))
    image.SetDirection((0, 0, 1, -1, 0, 0, 0, -1, 0))
    image.SetOrigin((10.0, -20.0, 30.5))
    image.SetMetaData("PatientName", "Jane Doe")
    sitk.WriteImage(image, scan)
    write_heat_map(explain_scan(_classifier(), _processor(), read_volume(scan), "nodule"), path, scan)
    written = sitk.ReadImage(path)
    for read in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(written, read)() == pytest.approx(getattr(image, read)()), read
    assert metadata_fields(scan) != metadata_fields(path) == []


def test_the_map_of_anything_else_has_the_grid_of_the_volume(tmp_path):
    volume = _volume()
    heat_map = explain_scan(_classifier(), _processor(), volume, "nodule")
    write_heat_map(heat_map, tmp_path / "map.nii.gz", tmp_path)  # a folder of slices
    written = nibabel.load(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(written.affine, volume.affine, atol=1e-4)
    np.testing.assert_allclose(written.get_fdata(), heat_map.array.transpose(2, 1, 0), atol=1e-6)


def test_paths_that_would_be_wrong_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"end in one of \.nii\.gz, .*, got map\.png"):
        check_map_path("map.png", "scan.nii.gz")
    scan = tmp_path / "scan.nii.gz"
    with pytest.raises(ValueError, match=r"must not be the scan itself, got .*scan\.nii\.gz"):
        check_map_path(tmp_path / "." / "scan.nii.gz", scan)
    with pytest.raises(ValueError, match=r"output must be a file in a folder that exists, got .*no.map\.nii"):
        check_map_path(tmp_path / "no" / "map.nii", scan)
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(ValueError, match=r"output must be a file in a folder that exists, got .*folder\.nii"):
        check_map_path(tmp_path / "folder.nii", scan)
    check_map_path(tmp_path / "map.nii", scan)
    heat_map = HeatMap(np.zeros((2, 2, 2), np.float32), _volume((2, 2, 2)), 0, 0, 0, (1, 1, 1), ((0, 2),) * 3)
    with pytest.raises(ValueError, match="must not be the scan itself"):
        write_heat_map(heat_map, scan, scan)


def test_classifiers_and_dual_towers_load_with_their_processor(tmp_path, tiny_medclip):
    model = _classifier()
    model.train().save_pretrained(tmp_path / "classifier")
    _processor(size=(16, 24, 20)).save_pretrained(tmp_path / "classifier")
    loaded, processor = load_explainable(tmp_path / "classifier")
    assert isinstance(loaded, CT3DVisionForImageClassification)
    assert not loaded.training
    assert processor.size == (16, 24, 20)
    torch.testing.assert_close(loaded.classifier.weight, model.classifier.weight)
    tiny_medclip.save_pretrained(tmp_path / "dual")
    dual, processor = load_explainable(tmp_path / "dual")
    assert isinstance(dual, MedCLIPModel)
    assert isinstance(processor, CT3DImageProcessor)


def test_a_tower_without_its_classifier_is_refused(tmp_path):
    _classifier().vision_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"got none for \['classifier.bias', 'classifier.weight'\]"):
        load_explainable(tmp_path)


def test_a_text_encoder_is_refused(tmp_path, tiny_text_config):
    tiny_text_config.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="a classifier of scans or a dual tower, got llm_biencoder in"):
        load_explainable(tmp_path)
