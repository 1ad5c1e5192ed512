import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from radtower.hub_cards.labels.class_balance_plot import COLORS
from radtower.hub_cards.labels.label_card import class_counts
from radtower.hub_cards.labels.label_dataset import write_label_dataset


def _files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_folder_loads_with_the_values_it_was_made_of(make_release, tmp_path):
    release = make_release()
    folder = write_label_dataset(release, tmp_path / "out")
    assert _files(folder) == [
        *("README.md", "assets/class_balance.png"),
        *(f"data/{split}.parquet" for split in ("test", "train", "validation")),
    ]
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {split: rows.num_rows for split, rows in loaded.items()} == release.splits
    for split in release.splits:
        assert loaded[split].to_list() == release.table(split).to_pylist()
    assert list(tmp_path.glob(".out*")) == []


def test_no_file_holds_text_of_a_report_or_a_patient_id(make_release, tmp_path):
    folder = write_label_dataset(make_release(), tmp_path / "out")
    content = b"".join((folder / name).read_bytes() for name in _files(folder))
    tables = [pq.read_table(path).to_pylist() for path in sorted((folder / "data").iterdir())]
    for secret in ("A small nodule", "Perhaps an effusion", "clear and quiet", "p5"):
        assert secret.encode() not in content
        assert secret not in str(tables)


def test_the_same_input_gives_the_same_bytes_and_replaces_the_folder(make_release, tmp_path):
    folder = write_label_dataset(make_release(), tmp_path / "out")
    before = {name: (folder / name).read_bytes() for name in _files(folder)}
    again = write_label_dataset(make_release(), tmp_path / "out")
    assert {name: (again / name).read_bytes() for name in _files(again)} == before
    write_label_dataset(make_release(reports=None), tmp_path / "out")
    assert _files(folder) == ["README.md", "assets/class_balance.png", "data/train.parquet"]


def test_a_foreign_folder_is_left_alone(make_release, tmp_path):
    for name in ("notes.txt", "README.md"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
    (tmp_path / "README" / "data.csv").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("notes", "README", "file"):
        with pytest.raises(FileExistsError, match=rf"got .*{name}, which is neither"):
            write_label_dataset(make_release(), tmp_path / name)
    assert _files(tmp_path / "notes") == ["notes.txt"]


def test_nothing_is_written_where_a_risk_is_refused(make_release, tmp_path, write_label_table):
    write_label_table(s2={"evidence": {"nodule": "Seen by Dr. Miller.", "effusion": None}})
    with pytest.raises(ValueError, match="got 1 in 1 of 3 texts"):
        write_label_dataset(make_release(has_text=True, license_id="cc-by-4.0"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _num_pixels(pixels, color):
    wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return int((pixels == wanted).all(axis=-1).sum())


def test_the_plot_has_bars_as_long_as_the_counts(make_release, tmp_path):
    release = make_release()
    folder = write_label_dataset(release, tmp_path / "out")
    with Image.open(folder / "assets" / "class_balance.png") as image:
        pixels = np.asarray(image.convert("RGB"))
        assert image.size[0] > 500
        assert "Software" not in image.info
    drawn = {state: _num_pixels(pixels, color) for state, color in COLORS.items()}
    counts = class_counts(release).sum()
    # Legend patches and white edges are small beside bars: 10 cells in two bars.
    per_cell = sum(drawn.values()) / counts.sum()
    for state, count in counts.items():
        assert abs(drawn[state] / per_cell - count) < 0.35, state
