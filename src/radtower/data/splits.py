"""The three splits, and how a column with another value is refused."""

import re
from collections.abc import Iterable
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# What others call them. In a table whose columns are shifted a split is a report, or whose it is.
_OTHER_NAMES = re.compile(
    r"(img)?(train(ing)?|val(id(ation)?)?|dev(elopment)?|eval(uation)?|test(ing)?|hold_?out)(_set)?|all|none|",
    re.IGNORECASE,
)


def check_splits(splits: Iterable[str]) -> None:
    """Refuse a column with a value that is no split; only a word for a split is quoted.

    Raises:
        ValueError: If there is one.
    """
    unknown = {value: row for row, value in reversed(list(enumerate(splits))) if value not in SPLITS}
    if not unknown:
        return
    named = sorted(value for value in unknown if _OTHER_NAMES.fullmatch(value))
    hidden = [row for value, row in unknown.items() if value not in named]
    found = [str(named)] if named else []
    if hidden:
        found.append(f"{len(hidden)} values that are no name of a split, first at row {min(hidden)}")
    raise ValueError(
        f"split must be one of {', '.join(SPLITS)}, got {' and '.join(found)}. Rename the split."
    )
