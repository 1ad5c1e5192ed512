import numpy as np
import pytest

from radtower.demo.phantom import make_phantom
from radtower.demo.phantom_anatomy import Anatomy, draw_habitus
from radtower.demo.phantom_canvas import Canvas
from radtower.demo.phantom_devices import DEVICES
from radtower.demo.phantom_findings import PAINT_ORDER, PHANTOM_FINDINGS, draw_heart_growth, paint_finding


def _anatomy(seed, heart_growth=1.0):
    canvas = Canvas((70, 100, 100), (4.5, 3.6, 3.6), (-200.0, -170.0, -178.0), 0.0)
    return Anatomy(canvas, draw_habitus(np.random.default_rng(seed)), heart_growth)


def _cardiothoracic_ratio(anatomy):
    radii, axes = np.array(anatomy.heart_radii_mm), anatomy.heart_axes
    return np.sqrt(((radii * axes[:, 2]) ** 2).sum()) / anatomy.wall_x_mm


def test_paint_order_has_every_finding_but_the_enlarged_heart():
    assert set(PAINT_ORDER) == set(PHANTOM_FINDINGS) - {"cardiomegaly"}
    assert len(PAINT_ORDER) == len(PHANTOM_FINDINGS) - 1


def test_cardiothoracic_ratio_separates_normal_from_enlarged_hearts():
    rng = np.random.default_rng(2)
    normal = [_cardiothoracic_ratio(_anatomy(seed)) for seed in range(60)]
    enlarged = [_cardiothoracic_ratio(_anatomy(seed, draw_heart_growth(rng))) for seed in range(60)]
    assert max(normal) < 0.5
    assert np.mean(enlarged) > 0.5
    assert min(enlarged) > np.mean(normal)


@pytest.mark.parametrize("kind", sorted(DEVICES))
def test_every_device_leaves_metal_inside_the_field_of_view(kind):
    anatomy = _anatomy(1)
    side, size_mm = DEVICES[kind](anatomy, np.random.default_rng(0), 2500.0)
    assert side in ("left", "right", "midline")
    assert 5 < size_mm < 120
    assert (anatomy.canvas.volume_hu > 1000).sum() > 20


def test_a_lung_lesion_needs_lung():
    anatomy = _anatomy(1)
    with pytest.raises(ValueError, match=r"got none in shape \(70, 100, 100\)"):
        paint_finding("lung_nodule", anatomy, np.random.default_rng(0))


def test_placed_attributes_stay_in_their_vocabulary_and_vary():
    placed = [make_phantom(seed, PHANTOM_FINDINGS).placed for seed in range(4)]
    for findings in placed:
        for finding in findings:
            assert finding.side in ("left", "right", "bilateral", "midline")
            assert finding.severity in ("mild", "moderate", "severe")
            assert 5 <= finding.size_mm <= 300
            assert 1 <= finding.count <= 7
            assert bool(finding.kind) == (finding.name == "medical_material")
    for column in zip(*placed, strict=True):
        assert len({finding.size_mm for finding in column}) > 1, column[0].name
