"""Features as files, and which may be compared."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from radtower.evaluation.features import (
    Features,
    FeatureSource,
    read_features,
    require_same_space,
    write_features,
)

SOURCE = FeatureSource(
    kind="image",
    model_id="m",
    model_revision="abc",
    processor_hash="123",
    is_normalized=True,
    model_hash="f0",
)


def _features(**source):
    return Features(torch.tensor([[0.6, 0.8], [1.0, 0.0]]), ["a", "b"], replace(SOURCE, **source))


def test_features_survive_the_files(tmp_path):
    folder = write_features(_features(), tmp_path / "deep" / "features")
    back = read_features(folder)
    assert torch.equal(back.vectors, _features().vectors)
    assert (back.ids, back.source) == (["a", "b"], SOURCE)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["shape"] == [2, 2]
    assert manifest["processor_hash"] == "123"


def test_vectors_that_do_not_match_their_manifest_are_refused(tmp_path):
    folder = write_features(_features(), tmp_path)
    save_file({"features": torch.zeros(3, 2)}, folder / "features.safetensors")
    with pytest.raises(ValueError, match=r"manifest \[2, 2\] with 2 ids, got \[3, 2\]"):
        read_features(folder)


def test_half_a_write_cannot_be_read(tmp_path, monkeypatch):
    write_features(_features(), tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("radtower.evaluation.features.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_features(_features(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        read_features(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("is_normalized", False), ("model_hash", "f1")],
)
def test_vectors_of_another_model_are_refused(name, value):
    require_same_space(_features(), _features(kind="text", processor_hash=None))
    with pytest.raises(ValueError, match=f"share their {name}, got {getattr(SOURCE, name)!r} and {value!r}"):
        require_same_space(_features(), _features(kind="text", **{name: value}))


@pytest.mark.parametrize(("name", "value"), [("model_id", "n"), ("model_revision", None)])
def test_names_count_only_where_a_hash_is_missing(name, value):
    require_same_space(_features(), _features(kind="text", **{name: value}))  # the same weights, moved
    for left, right in ((None, "f0"), ("f0", None)):
        with pytest.raises(ValueError, match=f"their {name}, got {getattr(SOURCE, name)!r} and {value!r}"):
            require_same_space(
                _features(model_hash=left), _features(kind="text", model_hash=right, **{name: value})
            )


def test_scans_that_another_processor_prepared_are_refused():
    require_same_space(_features(), _features())
    with pytest.raises(ValueError, match="share their processor_hash, got '123' and '456'"):
        require_same_space(_features(), _features(processor_hash="456"))


def test_files_of_earlier_releases_have_no_hash_of_the_model(tmp_path):
    folder = write_features(_features(), tmp_path)
    content = json.loads((folder / "manifest.json").read_text())
    del content["model_hash"], content["depends_on_batch"]
    (folder / "manifest.json").write_text(json.dumps(content))
    old = read_features(folder)
    assert (old.source.model_hash, old.source.depends_on_batch) == (None, False)
    require_same_space(old, _features())
    require_same_space(_features(), old)


def test_vectors_that_depend_on_their_batch_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="must not depend on their batch, got those of m with"):
        write_features(_features(depends_on_batch=True), tmp_path / "new")
    assert not (tmp_path / "new").exists()
