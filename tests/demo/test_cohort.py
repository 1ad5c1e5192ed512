import csv
import hashlib

import numpy as np
import pytest
import SimpleITK as sitk

from radtower.data.manifest import read_manifest
from radtower.demo.cohort import DEFAULT_PREVALENCE, MANIFEST_COLUMNS, write_cohort, write_volume
from radtower.demo.phantom import PHANTOM_FINDINGS, make_phantom
from radtower.labeling.findings import load_findings

SPLITS = {"train": 0.5, "validation": 0.25, "test": 0.25}


def _rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _digests(folder):
    """Hash of every table and of the voxels of every image."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.csv")}
    for path in sorted((folder / "images").iterdir()):
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        digests[path.name] = hashlib.sha256(voxels.tobytes()).hexdigest()
    return digests


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "nested"
    done = []
    manifest = write_cohort(folder, 4, 21, SPLITS, on_progress=done.append)
    assert done == [1, 2, 3, 4]
    return manifest


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """Write a cohort of any size in no time: volumes and reports are left out."""

    def write(num_studies, seed, **options):
        def fake(study, folder):
            row = dict.fromkeys(MANIFEST_COLUMNS, "") | {"patient_id": study.patient_id, "split": study.split}
            row |= {name: str(int(name in study.findings)) for name in PHANTOM_FINDINGS}
            return row | {"study_id": study.study_id}, {"study_id": study.study_id}

        monkeypatch.setattr("radtower.demo.cohort._write_study", fake)
        return _rows(write_cohort(tmp_path, num_studies, seed, options.pop("splits", SPLITS), **options))

    return write


def test_manifest_has_its_columns_and_one_image_per_row(cohort):
    rows = _rows(cohort)
    assert cohort.name == "manifest.csv"
    assert tuple(rows[0]) == (*MANIFEST_COLUMNS, *PHANTOM_FINDINGS)
    assert len({row["study_id"] for row in rows}) == len(rows) == 4
    assert all((cohort.parent / row["image_path"]).is_file() for row in rows)
    assert rows[0]["patient_id"] == "phantom-0001"
    assert rows[0]["report"] == f"Findings: {rows[0]['findings']} Impression: {rows[0]['impression']}"


def test_the_package_reads_the_manifest_and_its_truth(cohort):
    manifest = read_manifest(cohort, check_images=True)
    findings = load_findings("ct_rate_18").subset(PHANTOM_FINDINGS)
    expected = np.array([[float(row[name]) for name in PHANTOM_FINDINGS] for row in _rows(cohort)])
    np.testing.assert_array_equal(manifest.truth(findings), expected)
    assert 0 < expected.mean() < 1


def test_gold_agrees_with_the_truth_where_the_text_is_sure(cohort):
    truth = {row["study_id"]: row for row in _rows(cohort)}
    gold = _rows(cohort.parent / "gold.csv")
    assert tuple(gold[0]) == ("study_id", *PHANTOM_FINDINGS)
    assert [row["study_id"] for row in gold] == list(truth)
    for row in gold:
        for name in PHANTOM_FINDINGS:
            if row[name] == "present":
                assert truth[row["study_id"]][name] == "1"
            if row[name] in ("absent", "not_mentioned"):
                assert truth[row["study_id"]][name] == "0"


def test_written_volume_keeps_voxels_spacing_and_lps_axes(tmp_path):
    phantom = make_phantom(4, ["lung_nodule"])
    write_volume(phantom, tmp_path / "scan.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), phantom.volume_hu)
    assert image.GetSpacing() == pytest.approx(phantom.spacing_mm[::-1])
    assert image.GetSpacing()[0] != pytest.approx(image.GetSpacing()[2])
    assert image.GetDirection() == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))
    size = image.GetSize()
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size])
    assert middle == pytest.approx((0, 0, 0), abs=1e-3)


def test_arrays_and_tables_do_not_depend_on_the_run(cohort, tmp_path):
    again = write_cohort(tmp_path, 4, 21, SPLITS)
    assert _digests(again.parent) == _digests(cohort.parent)


@pytest.mark.slow
def test_arrays_and_tables_do_not_depend_on_the_number_of_workers(cohort, tmp_path):
    done = []
    again = write_cohort(tmp_path, 4, 21, SPLITS, num_workers=2, on_progress=done.append)
    assert _digests(again.parent) == _digests(cohort.parent)
    assert done == [1, 2, 3, 4]


def test_another_seed_gives_another_cohort(planned):
    assert planned(40, 1) != planned(40, 2)


def test_patients_stay_in_one_split_and_some_come_twice(planned):
    rows = planned(400, 5)
    splits = {}
    for row in rows:
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert max(len(names) for names in splits.values()) == 1
    visits = np.unique([row["patient_id"] for row in rows], return_counts=True)[1]
    assert set(visits) == {1, 2}
    assert 0.1 < (visits == 2).mean() < 0.2
    assert len(rows) == 400


def test_splits_have_their_shares_of_patients(planned):
    rows = planned(400, 6, splits={"train": 0.7, "test": 0.3})
    patients = {row["patient_id"]: row["split"] for row in rows}
    share = list(patients.values()).count("train") / len(patients)
    assert share == pytest.approx(0.7, abs=0.01)


def test_prevalence_is_the_one_asked_for_and_findings_are_independent(planned):
    rows = planned(3000, 7, prevalence={"emphysema": 0.6})
    truth = np.array([[int(row[name]) for name in PHANTOM_FINDINGS] for row in rows])
    expected = DEFAULT_PREVALENCE | {"emphysema": 0.6}
    np.testing.assert_allclose(truth.mean(axis=0), [expected[name] for name in PHANTOM_FINDINGS], atol=0.04)
    correlation = np.corrcoef(truth.T) - np.eye(len(PHANTOM_FINDINGS))
    assert np.abs(correlation).max() < 0.09


def test_default_prevalence_is_neither_rare_nor_common():
    assert tuple(DEFAULT_PREVALENCE) == PHANTOM_FINDINGS
    assert all(0.25 <= chance <= 0.45 for chance in DEFAULT_PREVALENCE.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_studies": 0}, "num_studies must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"splits": {"train": 0.5, "test": 0.4}}, r"got \{'train': 0.5, 'test': 0.4\}"),
        ({"splits": {}}, r"splits must be shares that sum to 1, got \{\}"),
        ({"splits": {"train": 1.5, "test": -0.5}}, "'test': -0.5"),
        ({"prevalence": {"emphysem": 0.3}}, r"got \['emphysem'\]"),
        ({"prevalence": {"emphysema": 1.3}}, r"got \{'emphysema': 1.3\}"),
        ({"num_workers": 0}, "num_workers must be 1 or more, got 0"),
    ],
)
def test_unusable_arguments_are_refused_before_anything_is_written(arguments, message, tmp_path):
    folder = tmp_path / "cohort"
    given = {"num_studies": 2, "seed": 1, "splits": SPLITS} | arguments
    with pytest.raises(ValueError, match=message):
        write_cohort(folder, **given)
    assert not folder.exists()
