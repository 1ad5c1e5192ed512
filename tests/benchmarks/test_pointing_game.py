"""The rules of the game; the game itself takes minutes."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from radtower.demo.phantom import make_phantom
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pointing_game.py"
SPACING_MM = (6.0, 5.0, 4.0)  # the tolerance of 24, 20 and 20 mm is 4, 4 and 5 voxels


@pytest.fixture(scope="module")
def game():
    spec = importlib.util.spec_from_file_location("pointing_game", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pointing_game"] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["pointing_game"]


def _study(game, lesion_at, shape=(20, 30, 40), chance=0.25):
    lesion = np.zeros(shape, bool)
    lesion[lesion_at] = True
    volume = Volume(
        np.zeros(shape, np.int16), SPACING_MM, affine_from_spacing(SPACING_MM), "LPS", VolumeSource("t", "n")
    )
    lesions = {"lung_nodule": np.packbits(lesion)}
    return game.Study(
        volume=volume,
        pixel_values=torch.empty(0),
        labels=np.ones(1),
        lesions=lesions,
        chance={"lung_nodule": chance},
    )


def test_a_hit_is_a_lesion_within_half_a_feature_voxel(game):
    study = _study(game, (10, 15, 20))
    near = [(10, 15, 20), (14, 15, 20), (6, 19, 20), (10, 11, 25), (14, 19, 15)]
    far = [(15, 15, 20), (10, 20, 20), (10, 15, 26), (5, 15, 20), (10, 15, 14)]
    peaks = [np.array(peak) for peak in near + far]
    assert study.hits("lung_nodule", peaks) == [True] * 5 + [False] * 5


def test_nothing_is_hit_from_outside_the_scan(game):
    study = _study(game, (0, 0, 39))
    peaks = [np.array(peak) for peak in ((0, 0, 39), (-1, 0, 39), (0, -1, 39), (0, 0, 40))]
    assert study.hits("lung_nodule", peaks) == [True, False, False, False]


def test_chance_is_the_body_and_what_the_maxima_of_the_others_would_hit(game):
    studies = [
        _study(game, (10, 15, 20), chance=0.1),
        _study(game, (10, 15, 20), (30, 40, 50), chance=0.3),
        _study(game, (2, 2, 2)),
    ]
    # The third does not play. The second points off its lesion, 5 x 5 x 5 voxels from its middle to the
    # edge, and so at that of the first, whose middle is elsewhere.
    peaks = {0: np.array((10, 15, 20)), 1: np.array((15, 20, 25))}
    table = game.play(studies, peaks, "lung_nodule")
    # Seen from the middle of the scan: peak of the second (0.5, 0.5, 0.5) voxels, lesion of the first the
    # same, so it is hit; peak of the first lies 5 voxels beside the lesion of the second.
    np.testing.assert_allclose(table[0], (1, 0.1, 1))
    np.testing.assert_allclose(table[1], (0, 0.3, 0))
    assert np.isnan(table[2]).all()


def test_the_mean_over_findings_gives_each_the_same_weight(game):
    nan = [np.nan] * 3
    often = np.array([[1, 0.1, 0.5], [1, 0.1, 0.5], [0, 0.1, 0.5], [1, 0.1, 0.5]])
    rare = np.array([[0, 0.3, 0.25], nan, nan, nan])
    summary = game.summarize([often, rare])
    assert summary["num_pairs"] == 5
    assert summary["hits"][0] == pytest.approx(0.375)
    assert summary["chance_in_body"][0] == pytest.approx(0.2)
    assert summary["chance_other_study"][0] == pytest.approx(0.375)
    assert summary["above_body"][0] == pytest.approx(0.175)
    assert summary["above_other_study"][0] == pytest.approx(0.0)
    low, high = summary["hits"][1:]
    assert low < 0.375 < high


def test_a_study_is_made_again_from_its_seed_with_its_lesions(game):
    study, again = (game.make_study(7, has_lesions=True) for _ in range(2))
    torch.testing.assert_close(study.pixel_values, again.pixel_values)
    assert study.pixel_values.shape == (3, 48, 64, 64)
    names = [name for name, on in zip(game.PHANTOM_FINDINGS, study.labels, strict=True) if on]
    assert sorted(study.lesions) == sorted(names)
    assert all(0.01 < chance < 0.8 for chance in study.chance.values())
    assert game.make_study(7, has_lesions=False).lesions == {}


def test_the_body_holds_the_lungs_and_not_the_table(game):
    phantom = make_phantom(3, [])
    body = game._body(phantom.volume_hu)
    middle = phantom.volume_hu.shape[0] // 2
    lung = (phantom.volume_hu[middle] < -700) & body[middle]
    assert 0.1 < lung.mean() < 0.5
    rows = np.flatnonzero(body[middle].any(axis=1))
    assert rows[-1] < body.shape[1] - 3
    assert 0.2 < body.mean() < 0.8
