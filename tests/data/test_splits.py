import pandas as pd
import pytest

from radtower.data.manifest import read_manifest
from radtower.data.reports.pairs import read_pairs
from radtower.data.reports.report_corpus import read_report_table
from radtower.data.splits import SPLITS, check_splits


def test_splits_pass():
    check_splits([*SPLITS, "train"])
    check_splits([])


@pytest.mark.parametrize(
    ("splits", "found"),
    [
        (["train", "dev", "Test", "dev"], "['Test', 'dev']."),
        (["train", ""], "['']."),
        (["imgvalid", "val_set"], "['imgvalid', 'val_set']."),
        (
            ["train", "p17", "dev", "Large mass.", "p17"],
            "['dev'] and 2 values that are no name of a split, first at row 1.",
        ),
        (["train", "Jones"], "1 values that are no name of a split, first at row 1."),
    ],
)
def test_another_value_is_quoted_only_if_it_is_a_word_for_a_split(splits, found):
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got") as caught:
        check_splits(splits)
    assert str(caught.value) == (
        f"split must be one of train, validation, test, got {found} Rename the split."
    )


def test_readers_of_shifted_columns_show_no_report(tmp_path):
    cells = {"study_id": "s", "patient_id": "p", "image_path": "i", "split": "Large mass.", "report": "x"}
    pd.DataFrame([cells]).to_csv(tmp_path / "table.csv", index=False)
    pair = {"query": "a", "positive": "b", "negatives": "[]", "negative_kinds": "[]", "source": "c/t"}
    pair |= {"instruction": "", "label_key": "", "study_id": "s", "split": "Large mass."}
    pd.DataFrame([pair]).to_csv(tmp_path / "pairs.csv", index=False)
    for read, name in ((read_manifest, "table"), (read_report_table, "table"), (read_pairs, "pairs")):
        with pytest.raises(ValueError, match=r"split must be .* got 1 values that are no name") as caught:
            read(tmp_path / f"{name}.csv")
        assert "mass" not in str(caught.value)
