import os
import shutil

import pytest
import torch
from transformers import AutoModel

from radtower.training.towers.load_weights import load_whole


class Payload:
    """What makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def pickled(tmp_path):
    """Give a copy of a model whose weights are a pickle with a payload."""

    def make(folder):
        copy = tmp_path / "pickled"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
        torch.save({"x": Payload(tmp_path / "made")}, copy / "pytorch_model.bin")
        return copy

    return make


def test_no_command_reads_a_pickle(radtower, dual_tower, scans, manifest, pickled, tmp_path):
    model = pickled(dual_tower)
    for command in (
        ("embed", "images", model, *scans, "-o", tmp_path / "a"),
        ("embed", "texts", model, manifest, "-o", tmp_path / "b"),
        ("zero-shot", model, scans[0]),
        ("explain", model, scans[0], "--finding", "lung_nodule", "-o", tmp_path / "map.nii.gz"),
        ("evaluate", "text", model, manifest, "-o", tmp_path / "r.json", "--no-bm25", "--split", "train"),
        ("export", model, "-o", tmp_path / "c"),
    ):
        done = radtower(*command)
        assert done.code == 2, command
        assert "must be safetensors" in done.err, (command, done.err)
        assert "pytorch_model.bin" in done.err.replace("\n", "")
        assert "torch.load(path, weights_only=True)" in done.err.replace("\n", "")
    assert not (tmp_path / "made").exists()


def test_no_training_starts_from_a_pickle(labeler, pickled, tmp_path):

    with pytest.raises(
        ValueError, match=r"the weights must be safetensors, got .*pytorch_model\.bin, a pickle"
    ):
        load_whole(AutoModel, str(pickled(labeler)))
    assert not (tmp_path / "made").exists()
