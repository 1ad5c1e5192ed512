"""Vectors are streamed to a safetensors file and read back without being loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from radtower.evaluation.search.vector_file import read_vectors, write_vectors

UNIT = np.array([[0.6, 0.8, 0], [0, 1, 0], [1, 0, 0]], dtype=np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_blocks_become_one_safetensors_file(tmp_path, dtype):
    path = tmp_path / "v.safetensors"
    write_vectors([UNIT[:2], UNIT[2:]], (3, 3), path, "cosine", dtype)
    expected = torch.from_numpy(UNIT).to(getattr(torch, dtype))
    assert torch.equal(load_file(path)["vectors"], expected)
    back = read_vectors(path)
    assert back.dtype == expected.dtype
    assert torch.equal(back, expected)
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_what_is_read_stays_on_the_disk(tmp_path):
    write_vectors([np.ones((1000, 1000), np.float32)] * 20, (20_000, 1000), tmp_path / "v", "dot")

    def anonymous_kb():
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0])

    before = anonymous_kb()
    vectors = read_vectors(tmp_path / "v")
    assert float(vectors[::100].sum()) == 200_000
    assert anonymous_kb() - before < 40_000  # of 80,000 in the file


@pytest.mark.parametrize(
    ("blocks", "metric", "message"),
    [
        ([UNIT[:2]], "cosine", "must be 3 rows, one per item, got 2"),
        ([UNIT, UNIT], "cosine", "must be 3 rows, one per item, got 6"),
        ([UNIT[:, :2]], "dot", r"must have 3 numbers each, got a block of shape \(3, 2\)"),
        ([UNIT[0]], "dot", r"must have 3 numbers each, got a block of shape \(3,\)"),
        (
            [UNIT[:2], np.array([[1.0, np.inf, 0.0]], dtype=np.float32)],
            "dot",
            "must be finite, got 1 with NaN or infinity among rows 2 to 2",
        ),
        ([UNIT[:1], UNIT[1:] * 1.1], "cosine", "must have length 1, got 2 others among rows 1 to 2"),
    ],
)
def test_other_vectors_are_refused(tmp_path, blocks, metric, message):
    with pytest.raises(ValueError, match=message):
        write_vectors(blocks, (3, 3), tmp_path / "v", metric)


def test_vectors_of_any_length_are_stored_for_the_dot_product_unless_they_overflow(tmp_path):
    write_vectors([UNIT * 1e6], (3, 3), tmp_path / "v", "dot")
    assert torch.equal(read_vectors(tmp_path / "v"), torch.from_numpy(UNIT * np.float32(1e6)))
    with pytest.raises(ValueError, match="must fit float16, got larger numbers"):
        write_vectors([UNIT * 1e6], (3, 3), tmp_path / "w", "dot", "float16")


def test_damaged_and_other_files_are_refused(tmp_path):
    path = tmp_path / "v.safetensors"
    write_vectors([UNIT], (3, 3), path, "cosine")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"v\.safetensors must be a safetensors file, got: "):
        read_vectors(path)
    for tensors in ({"x": torch.ones(2, 2)}, {"vectors": torch.ones(2)}):
        save_file(tensors, path)
        with pytest.raises(ValueError, match="must hold one matrix 'vectors', got "):
            read_vectors(path)
    save_file({"vectors": torch.ones(2, 2), "x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"got \['vectors', 'x'\]"):
        read_vectors(path)
