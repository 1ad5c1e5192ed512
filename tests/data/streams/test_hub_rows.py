"""Rows of a data set, from parquet files and folders, in parts and in order."""

import json
import zipfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Nifti, Value

from parquet_sets import nifti, png, write_set
from radtower.data.streams.hub_rows import HubRows, HubSource, with_bytes

REPORTS = [f"report {number}" for number in range(12)]


def _source(folder, **settings):
    given = {"image_column": "image", "report_column": "report", "shuffle_buffer": 4}
    return HubSource(dataset=str(folder), **given | settings)


@pytest.fixture
def image_set(tmp_path):
    """Twelve images in three files of two rows per group."""
    images = [png(number) for number in range(12)]
    return write_set(tmp_path / "set", images, REPORTS, list(range(100, 112)), num_files=3)


def _reports(rows, *args):
    return [row.report for row in rows.read(*args)]


def test_rows_are_undecoded_and_name_their_study(image_set):
    rows = HubRows(_source(image_set, study_column="study_id"))
    found = {row.report: row for row in rows.read()}
    assert rows.kind == "image"
    assert sorted(found) == sorted(REPORTS)
    assert found["report 7"].image == {"bytes": png(7), "path": None}
    assert found["report 7"].study_id == "107"
    assert next(HubRows(_source(image_set)).read()).study_id is None


def test_empty_cells_are_an_empty_report_and_no_image(tmp_path):
    write_set(tmp_path, [None, png(1)], ["a", None], ["s", None])
    rows = list(HubRows(_source(tmp_path, study_column="study_id", shuffle_buffer=1)).read())
    assert sorted((bool(row.image), row.report, row.study_id) for row in rows) == [
        (False, "a", "s"),
        (True, "", None),
    ]


def test_the_order_is_that_of_seed_and_pass(image_set):
    rows = HubRows(_source(image_set), seed=3)
    first, second = _reports(rows, 0), _reports(rows, 1)
    assert sorted(first) == sorted(second) == sorted(REPORTS)
    assert first != second
    assert _reports(rows, 0) == first
    assert _reports(HubRows(_source(image_set), seed=3), 1) == second
    assert _reports(HubRows(_source(image_set), seed=4), 0) != first


@pytest.mark.parametrize("num_readers", [2, 3, 4, 6, 12])
@pytest.mark.parametrize("pass_number", [0, 1])
def test_readers_share_the_rows_out(image_set, num_readers, pass_number):
    rows = HubRows(_source(image_set), num_readers=num_readers)
    parts = [_reports(rows, pass_number, reader) for reader in range(num_readers)]
    assert sorted(report for part in parts for report in part) == sorted(REPORTS)
    assert all(parts)
    sizes = sorted(map(len, parts))
    assert sizes[-1] - sizes[0] <= 2


def test_a_file_without_parts_is_read_by_all_and_shared_out_row_by_row(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for number in range(5):
        (folder / f"s{number}.nii.gz").write_bytes(nifti(number))
    lines = [{"file_name": f"s{number}.nii.gz", "report": f"report {number}"} for number in range(5)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = HubRows(_source(tmp_path, image_column="nifti"), num_readers=2)
    assert rows.kind == "volume"
    parts = [list(rows.read(1, reader)) for reader in range(2)]
    assert sorted(row.report for part in parts for row in part) == REPORTS[:5]
    row = parts[0][0]
    assert row.image["bytes"] is None
    assert row.image["path"].endswith(f"s{row.report[-1]}.nii.gz")
    assert with_bytes(row.image) is row.image


def test_an_image_inside_an_archive_is_fetched(tmp_path):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.writestr("a.png", png(5))
    path = f"zip://a.png::{tmp_path / 'scans.zip'}"
    assert with_bytes({"path": path, "bytes": None}) == {"path": path, "bytes": png(5)}
    with pytest.raises(FileNotFoundError):
        with_bytes({"path": str(tmp_path / "nothing.png"), "bytes": None})


@pytest.mark.parametrize("start", ["", "file://", "zip://a.png::", "zip://a.png::file://"])
def test_a_row_of_the_hub_reads_no_file_of_this_machine(tmp_path, start):
    (tmp_path / "secret.png").write_bytes(png(5))
    (tmp_path / "set").mkdir()
    features = Features({"image": datasets.Image(), "report": Value("string")})
    rows = [{"image": {"path": f"{start}{tmp_path / 'secret.png'}", "bytes": None}, "report": "a"}]
    pq.write_table(pa.Table.from_pylist(rows, features.arrow_schema), tmp_path / "set" / "train.parquet")
    rows = HubRows(_source(tmp_path / "set"))
    assert len(list(rows.read())) == 1  # in a folder of one's own a path is meant
    rows._is_local = False
    with pytest.raises(ValueError, match=r"must come with it, got a row of .*set that names a file of this"):
        list(rows.read())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"report_column": "text"}, r"must have the columns of the recipe, got no text among image, report"),
        ({"image_column": "report"}, r"Nifti \(3D\) or Image \(2D\), got Value for report\. Cast it"),
        ({"report_column": "study_id"}, r"report_column must be a column of text, got int64"),
        ({"report_column": "image"}, r"report_column must be a column of text, got Image"),
        ({"study_column": "image"}, r"study_column must be a column of text or whole numbers, got Image"),
        ({"split": "valid"}, r"valid"),
    ],
)
def test_refuses_columns_that_do_not_fit(image_set, settings, message):
    with pytest.raises(ValueError, match=message):
        HubRows(_source(image_set, **settings))


def test_refuses_a_data_set_of_unknown_features(tmp_path):
    (tmp_path / "train.csv").write_text("image,report\na.png,none\n")
    with pytest.raises(ValueError, match=r"features of a data set must be known .* got none of "):
        HubRows(_source(tmp_path))


def test_refuses_a_data_set_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        HubRows(_source(tmp_path / "nothing"))


def test_a_volume_column_may_be_declared_decoded(tmp_path):
    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": nifti(0), "path": None}], "report": ["a"]},
        features=Features({"image": Nifti(decode=False), "report": Value("large_string")}),
    )
    table.cast_column("image", Nifti()).to_parquet(tmp_path / "train.parquet")
    (row,) = HubRows(_source(tmp_path)).read()
    assert row.image["bytes"] == nifti(0)
