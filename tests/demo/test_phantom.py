import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from radtower.demo.phantom import PHANTOM_FINDINGS, make_phantom
from radtower.labeling.findings import load_findings

SEED_OF_ONE_NODULE = 13
SEEDS_OF_EFFUSION_SIDES = [(0, "left"), (2, "right")]


def _difference(seed, finding):
    plain, ill = make_phantom(seed, []), make_phantom(seed, [finding])
    return ill.volume_hu.astype(int) - plain.volume_hu.astype(int), plain, ill


def _volume_ml(mask, phantom):
    return mask.sum() * float(np.prod(phantom.spacing_mm)) / 1000


def test_findings_are_ct_rate_keys_in_ct_rate_order():
    keys = load_findings("ct_rate_18").keys
    assert len(PHANTOM_FINDINGS) >= 10
    assert [key for key in keys if key in PHANTOM_FINDINGS] == list(PHANTOM_FINDINGS)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    first, second = (make_phantom(5, ["lung_nodule", "emphysema"]) for _ in range(2))
    assert first.volume_hu.tobytes() == second.volume_hu.tobytes()
    assert first.placed == second.placed
    other = make_phantom(6, ["lung_nodule", "emphysema"])
    assert (
        hashlib.sha256(other.volume_hu.tobytes()).digest()
        != hashlib.sha256(first.volume_hu.tobytes()).digest()
    )


def test_findings_are_a_set_whose_order_does_not_matter():
    forward = make_phantom(8, PHANTOM_FINDINGS)
    backward = make_phantom(8, PHANTOM_FINDINGS[::-1])
    np.testing.assert_array_equal(forward.volume_hu, backward.volume_hu)
    assert tuple(finding.name for finding in backward.placed) == PHANTOM_FINDINGS


@pytest.mark.parametrize("finding", PHANTOM_FINDINGS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_finding_changes_voxels_visibly_and_locally(finding, seed):
    difference, plain, ill = _difference(seed, finding)
    changed = np.abs(difference) > 40
    assert _volume_ml(changed, plain) > 0.8
    assert changed.mean() < 0.15
    assert [placed.name for placed in ill.placed] == [finding]
    assert plain.placed == ()


def test_volume_is_int16_hounsfield_within_the_range_of_a_scanner():
    phantom = make_phantom(11, ["medical_material"])
    assert phantom.volume_hu.dtype == np.int16
    assert -1024 <= phantom.volume_hu.min() < -950
    assert phantom.volume_hu.max() <= 3071


@pytest.mark.parametrize("seed", range(6))
def test_size_and_spacing_stay_small_enough_for_the_demo(seed):
    phantom = make_phantom(seed, [])
    z, y, x = phantom.volume_hu.shape
    assert 64 <= z <= 100
    assert 96 <= y == x <= 128
    assert 2.5 <= phantom.spacing_mm[0] <= 5
    assert 2.5 <= phantom.spacing_mm[1] == phantom.spacing_mm[2] <= 4


def test_spine_is_at_large_y_and_liver_at_small_z():
    volume = np.mean([_standard(make_phantom(seed, [])) for seed in range(4)], axis=0)
    middle = volume[:, :, 12:20]
    assert middle[:, 20:26].mean() > middle[:, 4:12].mean() + 100
    assert volume[2:5, 10:18, 6:12].mean() > 0  # right upper abdomen: liver
    assert volume[16:22, 10:18, 6:12].mean() < -500  # right lung


def test_heart_apex_lies_at_larger_x():
    volume = np.mean([_standard(make_phantom(seed, ["cardiomegaly"])) for seed in range(4)], axis=0)
    level = volume[12:16, 8:18]
    assert level[:, :, 18:23].mean() > level[:, :, 9:14].mean() + 100


def test_lung_and_fat_have_their_densities():
    phantom = make_phantom(4, [])
    habitus = phantom.habitus
    counts, edges = np.histogram(phantom.volume_hu, bins=np.arange(-930, -700, 10))
    assert abs(edges[counts.argmax()] - habitus.lung_hu) < 60
    assert -920 < habitus.lung_hu < -760
    assert -120 < habitus.fat_hu < -80


@pytest.mark.parametrize(("seed", "side"), SEEDS_OF_EFFUSION_SIDES)
def test_pleural_effusion_is_on_its_side_and_at_the_back(seed, side):
    difference, _, ill = _difference(seed, "pleural_effusion")
    assert ill.findings["pleural_effusion"].side == side
    _, y, x = np.nonzero(difference > 300)
    assert (x.mean() > difference.shape[2] / 2) == (side == "left")
    assert y.mean() > difference.shape[1] / 2


def test_nodule_size_is_the_size_that_was_painted():
    difference, plain, ill = _difference(SEED_OF_ONE_NODULE, "lung_nodule")
    nodule = ill.findings["lung_nodule"]
    assert nodule.count == 1
    painted_ml = _volume_ml(difference > 400, plain)
    assert painted_ml == pytest.approx(np.pi / 6 * (nodule.size_mm / 10) ** 3, rel=0.4)


def test_cardiomegaly_enlarges_the_heart_and_says_how_wide_it_is():
    difference, plain, ill = _difference(9, "cardiomegaly")
    assert _volume_ml(difference > 300, plain) > 100
    assert 105 < ill.findings["cardiomegaly"].size_mm < 190


def test_emphysema_darkens_and_ground_glass_lightens_the_lung():
    emphysema, plain, _ = _difference(12, "emphysema")
    assert _volume_ml(emphysema < -60, plain) > 30
    assert (emphysema > 60).mean() < 1e-3
    glass, plain, ill = _difference(12, "lung_opacity")
    assert _volume_ml(glass > 150, plain) > 10
    ground_glass = ill.volume_hu[glass > 200]
    assert -700 < ground_glass.mean() < -350


def test_two_scans_of_a_patient_share_the_habitus_but_not_the_scanner():
    first, second = (make_phantom(seed, [], patient_seed=77) for seed in (1, 2))
    assert first.habitus == second.habitus != make_phantom(1, []).habitus
    assert first.spacing_mm != second.spacing_mm


def test_unknown_finding_is_refused():
    with pytest.raises(ValueError, match=r"got \['lung_nodul'\]"):
        make_phantom(1, ["lung_nodul", "emphysema"])


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be 0 or more, got -3"):
        make_phantom(-3, [])


def _standard(phantom):
    """Sample a volume on 32 x 32 x 32 points."""
    index = [np.linspace(0, n - 1, 32).round().astype(int) for n in phantom.volume_hu.shape]
    return phantom.volume_hu[np.ix_(*index)].astype(float)


def _trivial_auroc(num_phantoms):
    """AUROC per finding of a logistic regression on statistics of the whole volume."""
    rng = np.random.default_rng(0)
    labels = rng.random((num_phantoms, len(PHANTOM_FINDINGS))) < 0.35
    features = []
    for seed, row in enumerate(labels):
        volume = make_phantom(seed, [PHANTOM_FINDINGS[i] for i in np.flatnonzero(row)]).volume_hu
        percentiles = np.percentile(volume[::2, ::2, ::2], [1, 5, 10, 25, 50, 75, 90, 95, 99])
        features.append([volume.mean(), volume.std(), volume.min(), volume.max(), *percentiles])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))
    scores = [
        cross_val_predict(model, features, column, cv=5, method="predict_proba")[:, 1] for column in labels.T
    ]
    return {
        name: roc_auc_score(column, score)
        for name, column, score in zip(PHANTOM_FINDINGS, labels.T, scores, strict=True)
    }


@pytest.mark.slow
def test_labels_cannot_be_read_from_whole_volume_statistics():
    auroc = _trivial_auroc(400)
    assert np.mean(list(auroc.values())) < 0.75, auroc
    assert max(auroc.values()) < 0.9, auroc


@pytest.mark.parametrize("finding", [name for name in PHANTOM_FINDINGS if name != "cardiomegaly"])
def test_the_lesion_is_where_the_finding_changed_the_volume(finding):
    difference, plain, ill = _difference(1, finding)
    lesion = ill.lesions[finding]
    assert list(ill.lesions) == [finding]
    assert plain.lesions == {}
    # Noise is added after painting, the same to both; rounding to int16 moves a value by up to 1 HU.
    assert (np.abs(difference[lesion]) > 38).all()
    assert (np.abs(difference[~lesion]) < 42).all()


def test_the_lesion_of_an_enlarged_heart_is_the_heart():
    _, _, ill = _difference(1, "cardiomegaly")
    lesion = ill.lesions["cardiomegaly"]
    assert 700 < _volume_ml(lesion, ill) < 2500
    width_mm = np.ptp(np.flatnonzero(lesion.any(axis=(0, 1)))) * ill.spacing_mm[2]
    assert width_mm == pytest.approx(ill.findings["cardiomegaly"].size_mm, abs=2 * ill.spacing_mm[2])
    assert 0 < np.median(ill.volume_hu[lesion]) < 260
