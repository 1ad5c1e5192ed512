"""Which items pass: columns are joined by and, values of one column by or."""

import pandas as pd
import pytest

from radtower.evaluation.search.filters import matching_items
from radtower.evaluation.search.items import make_items

FINDINGS = ["Nodule", "Pleural effusion"]
ITEMS = make_items(
    ["a", "b", "c", "d"],
    {"split": ["test", "test", "train", ""], "report": ["w", "x", "y", "z"]},
    pd.DataFrame({"Nodule": [1, 0, 1, -100], "Pleural effusion": [1, 1, 0, -100]}),
)


@pytest.mark.parametrize(
    ("filters", "passing"),
    [
        ([], "abcd"),
        (["split=test"], "ab"),
        (["split=test", "split=train"], "abc"),
        (["finding=Nodule"], "ac"),
        (["finding=nodule", " finding = pleural_effusion "], "a"),
        (["nodule=0"], "b"),
        (["Nodule=absent", "Nodule=present"], "abc"),
        (["nodule=1", "split=train"], "c"),
        (["item_id=d"], "d"),
    ],
)
def test_what_passes(filters, passing):
    assert "".join(ITEMS["item_id"][matching_items(ITEMS, FINDINGS, filters)]) == passing


def test_what_cannot_be_asked_is_refused():
    for text in ("split", "split=", "=test"):
        with pytest.raises(ValueError, match=f"a filter must be COLUMN=VALUE, got '{text}'"):
            matching_items(ITEMS, FINDINGS, [text])
    with pytest.raises(
        KeyError, match=r"one finding of the index, got 'cyst', which is 0\. There are: Nodule, P"
    ):
        matching_items(ITEMS, FINDINGS, ["finding=cyst"])
    with pytest.raises(KeyError, match="one column of the index, got 'report', which is 0"):
        matching_items(ITEMS, FINDINGS, ["report=w"])
    twins = ITEMS.rename(columns={"Pleural effusion": "nodule!"})
    with pytest.raises(KeyError, match="got 'NODULE', which is 2"):
        matching_items(twins, ["Nodule", "nodule!"], ["finding=NODULE"])
    assert matching_items(twins, ["Nodule", "nodule!"], ["finding=Nodule"]).sum() == 2
    with pytest.raises(
        ValueError, match=r"must be 1 \(present\) or 0 \(absent\), got \['maybe'\] for Nodule"
    ):
        matching_items(ITEMS, FINDINGS, ["nodule=maybe"])
    with pytest.raises(ValueError, match=r"leave at least one item, got 0 of 4 for \['split=validation'\]"):
        matching_items(ITEMS, FINDINGS, ["split=validation"])
