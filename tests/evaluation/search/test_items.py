"""The table of items: no patients, no paths, and what it must agree with."""

import numpy as np
import pandas as pd
import pytest

from radtower.evaluation.search.items import make_items, plain_name, present_findings, read_items, write_items

LABELS = pd.DataFrame({"Nodule": [1, 0, -100], "Pleural effusion": [1.0, 1.0, 0.0]}, index=[7, 8, 9])


def table():
    return make_items(["a", "b", "c"], {"split": ["test", "", "train"], "report": ["x", "y", "z"]}, LABELS)


def test_items_survive_the_file(tmp_path):
    write_items(table(), tmp_path)
    assert (tmp_path / "items.parquet").stat().st_mode & 0o777 == 0o600
    back = read_items(tmp_path, 3, ["Nodule", "Pleural effusion"], has_text=True)
    assert list(back) == ["item_id", "split", "report", "Nodule", "Pleural effusion"]
    assert back["split"].astype(object).where(back["split"].notna(), None).tolist() == ["test", None, "train"]
    assert back["Nodule"].tolist() == [1, 0, pd.NA]
    pd.testing.assert_frame_equal(back.drop(columns="split"), table().drop(columns="split"))
    assert str(back["split"].dtype) == "category"
    write_items(make_items(["a"]), tmp_path)
    assert read_items(tmp_path, 1, [], has_text=False).to_dict("list") == {"item_id": ["a"]}
    found = [present_findings(back, ["Nodule", "Pleural effusion"], row) for row in range(3)]
    assert found == [["Nodule", "Pleural effusion"], ["Pleural effusion"], []]


def test_a_table_that_is_not_that_of_the_index_is_refused(tmp_path):
    write_items(table(), tmp_path)
    for count, findings, has_text, message in (
        (4, [], True, r"must have 4 rows and the columns of index\.json, got 3 rows, no \[\], and \[\] too"),
        (3, ["Cyst"], True, r"no \['Cyst'\]"),
        (3, [], False, r"and \['report'\] too much"),
    ):
        with pytest.raises(ValueError, match=message):
            read_items(tmp_path, count, findings, has_text=has_text)
    write_items(table().drop(columns=["report", "item_id"]), tmp_path)
    with pytest.raises(ValueError, match=r"no \['item_id', 'report'\]"):
        read_items(tmp_path, 3, [], has_text=True)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "must have at least one item, got 0"),
        (["a", " "], "got 1 empty and 0 repeats"),
        (["a", "b", "a"], "got 0 empty and 1 repeats"),
        (["/data/a.nii.gz", "b"], "must not be paths of this machine, got 1"),
        (["C:\\scans\\a", "b"], "must not be paths of this machine, got 1"),
    ],
)
def test_ids_that_name_nothing_or_a_machine_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        make_items(ids)


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="split must have one value per item, 2, got 1"):
        make_items(["a", "b"], {"split": ["test"]})
    with pytest.raises(ValueError, match="must not be called 'finding'"):
        make_items(["a"], {"finding": ["x"]})
    with pytest.raises(ValueError, match=r"columns of their own, got \['split'\] twice"):
        make_items(["a"], {"split": ["test"]}, pd.DataFrame({"split": [1]}))
    with pytest.raises(ValueError, match=r"must be 0, 1 or -100 for 1 items, got 1 rows, and 2 other values"):
        make_items(["a"], {}, pd.DataFrame({"x": [-1], "y": [np.nan], "z": [1]}))
    with pytest.raises(ValueError, match=r"for 2 items, got 1 rows, and 0 other"):
        make_items(["a", "b"], {}, pd.DataFrame({"x": [1]}))


def test_names_as_people_type_them():
    assert plain_name(" Pleural effusion") == plain_name("pleural_effusion") == "pleural_effusion"
    assert plain_name("Mosaic (air-trapping)") == "mosaic_air_trapping"
