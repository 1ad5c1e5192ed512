"""Filters of a search: which items may be found at all.

Axes: N items.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from radtower.evaluation.search.items import FINDING, REPORT, plain_name

_ANSWERS = {"1": 1, "present": 1, "0": 0, "absent": 0}


def matching_items(items: pd.DataFrame, findings: Sequence[str], filters: Sequence[str]) -> np.ndarray:
    """Return ``(N,)`` bool: the items that pass all filters.

    Args:
        items: Table of items.
        findings: Its columns that are findings.
        filters: ``COLUMN=VALUE`` each. ``finding=NAME`` passes items that have the finding, ``NAME=0`` those
            that are known not to. Values of one column are alternatives; different columns, and findings,
            must all hold. Columns and findings may be written ``pleural_effusion`` for ``Pleural effusion``.

    Raises:
        KeyError: If there is no such column or finding.
        ValueError: If a filter is not written so, asks for text of reports, or nothing passes.
    """
    wanted: dict[str, list[str]] = {}
    for text in filters:
        column, value = _parsed(items, findings, text)
        wanted.setdefault(column, []).append(value)
    passes = np.ones(len(items), dtype=bool)
    for column, values in wanted.items():
        passes &= _holds(items[column], column in findings, values)
    if not passes.any():
        raise ValueError(
            f"filters must leave at least one item, got 0 of {len(items)} for {list(filters)}. Loosen them."
        )
    return passes


def _parsed(items: pd.DataFrame, findings: Sequence[str], text: str) -> tuple[str, str]:
    column, equals, value = (part.strip() for part in text.partition("="))
    if not (column and equals and value):
        raise ValueError(f"a filter must be COLUMN=VALUE, got {text!r}. Write split=test, say.")
    if column == FINDING:
        return _found(value, findings, "finding"), "1"
    return _found(column, [str(name) for name in items if name != REPORT], "column"), value


def _found(name: str, known: Sequence[str], kind: str) -> str:
    exact = [other for other in known if other == name]
    alike = exact or [other for other in known if plain_name(other) == plain_name(name)]
    if len(alike) != 1:
        raise KeyError(
            f"a filter must name one {kind} of the index, got {name!r}, which is {len(alike)}. There are: "
            f"{', '.join(known) or 'none'}."
        )
    return alike[0]


def _holds(cells: pd.Series, is_finding: bool, values: Sequence[str]) -> np.ndarray:
    if not is_finding:
        return cells.isin(values).to_numpy(dtype=bool)
    unknown = [value for value in values if value not in _ANSWERS]
    if unknown:
        raise ValueError(
            f"a finding must be 1 (present) or 0 (absent), got {unknown} for {cells.name}. Items where it is "
            "unknown pass neither."
        )
    return cells.isin([_ANSWERS[value] for value in values]).fillna(False).to_numpy(dtype=bool)
