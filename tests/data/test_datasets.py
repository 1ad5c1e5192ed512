import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from radtower.data.augmentation import VolumeAugmentation
from radtower.data.datasets import StudyDataset, study_targets
from radtower.data.targets import TargetPolicy
from radtower.data.volume_cache import VolumeCache, build_volume_cache
from radtower.labeling.findings import Status
from radtower.labeling.label_table import LabelRow, write_labels
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.report_text import report_sha256
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume

STATUSES = {
    "Effusion, no nodule.": (Status.PRESENT, Status.ABSENT),
    "Possible nodule.": (Status.NOT_MENTIONED, Status.UNCERTAIN),
    "Unreadable.": (None, None),
}


@pytest.fixture
def labels(tmp_path):
    rows = []
    for number, (text, statuses) in enumerate(STATUSES.items()):
        keys = ("effusion", "nodule")
        rows.append(
            LabelRow(
                report_id=f"r{number}",
                report_sha256=report_sha256(text),
                status=dict(zip(keys, statuses, strict=True)),
                score=dict.fromkeys(keys),
                evidence=dict.fromkeys(keys),
                labeler="test",
                model_id="m",
                prompt_version=None,
                findings_set="pair",
                error=None if statuses[0] else "timeout",
            )
        )
    write_labels(rows, tmp_path / "labels.parquet")
    return tmp_path / "labels.parquet"


def _studies(*reports):
    return pd.DataFrame({"report": list(reports)})


def test_targets_follow_the_policy_and_the_order_of_the_studies(labels):
    studies = _studies("Possible nodule.", "Effusion,  no nodule.", "Unreadable.", "Possible nodule.")
    targets = study_targets(studies, labels, TargetPolicy())
    assert targets.keys == ("effusion", "nodule")
    np.testing.assert_array_equal(targets.values, [[0, -100], [1, 0], [-100, -100], [0, -100]])
    assert targets.values.dtype == np.float32
    soft = study_targets(studies, labels, TargetPolicy(uncertain=0.25, not_mentioned=None))
    np.testing.assert_array_equal(soft.values, [[-100, 0.25], [1, 0], [-100, -100], [-100, 0.25]])


def test_a_report_that_was_never_labeled_is_refused_by_its_hash(labels):
    text = "A report of Mrs. Doe."
    with pytest.raises(KeyError, match=f"got 1 that are not, first {report_sha256(text)[:12]}") as error:
        study_targets(_studies("Possible nodule.", text), labels, TargetPolicy())
    assert "Doe" not in str(error.value)


def test_a_sample_has_what_was_asked_for_and_no_more():
    scans = {"a": torch.full((1, 2, 2, 2), 0.25), "b": torch.full((1, 2, 2, 2), -0.5)}
    targets = np.array([[1.0, -100.0], [0.25, 0.0]])
    features = torch.tensor([[3.0], [5.0]])
    dataset = StudyDataset(["b", "a"], scans.__getitem__, targets, features)
    assert len(dataset) == 2
    assert torch.equal(dataset[0]["pixel_values"], scans["b"])
    assert dataset[0]["labels"].tolist() == [1, -100]
    assert dataset[0]["labels"].dtype == torch.float32
    assert dataset[1]["labels"].tolist() == [0.25, 0]
    assert dataset[1]["text_features"].tolist() == [5]
    assert list(StudyDataset(["a"], scans.__getitem__)[0]) == ["pixel_values"]


@pytest.mark.parametrize(
    ("name", "table"), [("targets", np.zeros((3, 1))), ("text_features", torch.zeros(1, 4))]
)
def test_a_table_with_another_number_of_rows_is_refused(name, table):
    with pytest.raises(ValueError, match=f"{name} must have one row per volume, got {len(table)} for 2"):
        StudyDataset(["a", "b"], {}.__getitem__, **{name: table})


@pytest.fixture
def cache(tmp_path) -> VolumeCache:
    """Three scans with a margin of 4 voxels around a crop of 4, 6, 5."""
    scans = {}
    for seed in range(3):
        array = np.random.default_rng(seed).integers(-1000, 800, (9, 12, 10)).astype(np.int16)
        affine = affine_from_spacing((3.0, 3.0, 3.0))
        volume = Volume(array, (3.0, 3.0, 3.0), affine, "LPS", VolumeSource("test", "none"))
        scans[f"v{seed}"] = tmp_path / f"{seed}.nii.gz"
        write_volume(volume, scans[f"v{seed}"])
    processor = CT3DImageProcessor((3.0, 3.0, 3.0), (4, 6, 5), cache_size=(8, 10, 9))
    return build_volume_cache(scans, processor, tmp_path / "cache")


def _augmented(cache: VolumeCache) -> StudyDataset:
    augmentation = VolumeAugmentation(image_processor=cache.image_processor, seed=3, max_noise_hu=20.0)
    return StudyDataset(["v2", "v0", "v1"], cache, augmentation=augmentation)


def test_a_cache_gives_the_middle_of_a_scan_or_what_the_augmentation_makes_of_it(cache):
    assert torch.equal(StudyDataset(["v2"], cache)[0]["pixel_values"], cache["v2"])
    dataset = _augmented(cache)
    for epoch in (0, 5):
        dataset.set_epoch(epoch)
        expected = dataset.augmentation(cache.volume_hu("v0"), epoch, 1)
        assert torch.equal(dataset[1]["pixel_values"], expected)
    assert not torch.equal(dataset.augmentation(cache.volume_hu("v0"), 0, 1), expected)


@pytest.mark.parametrize("is_persistent", [False, True])
def test_the_processes_of_a_data_loader_follow_the_epoch(cache, is_persistent):
    dataset = _augmented(cache)
    loader = DataLoader(dataset, num_workers=2, persistent_workers=is_persistent)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        batches = torch.cat([batch["pixel_values"] for batch in loader])
        expected = [
            dataset.augmentation(cache.volume_hu(v), epoch, i) for i, v in enumerate(dataset.volume_ids)
        ]
        assert torch.equal(batches, torch.stack(expected))


def test_an_augmentation_needs_the_hounsfield_units_of_a_cache(cache):
    augmentation = VolumeAugmentation(image_processor=cache.image_processor, seed=3)
    with pytest.raises(TypeError, match="scans must be a VolumeCache to be augmented, got function"):
        StudyDataset(["a"], lambda volume_id: torch.zeros(1), augmentation=augmentation)
