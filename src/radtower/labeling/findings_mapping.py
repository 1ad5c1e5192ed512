"""Labels of one findings set as labels of another.

Which findings stand for which is data (``findings/mappings/*.yaml``); the rule that joins them is here, once.
A finding without a counterpart is unknown in the result (not_mentioned, or NaN as a score), never 0.
Axes: N reports.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from radtower.labeling.findings import FindingsSet, Status, load_findings
from radtower.labeling.shipped_data import DataFile, open_data_file, problems_in

Relation = Literal["same", "broader", "narrower", "overlapping"]
# The target is there if one of its sources is, so this is an OR: the first status that a source has. Absent
# comes last: it takes all sources to rule the target out, and one that is not mentioned leaves it open.
STATUS_ORDER = (Status.PRESENT, Status.UNCERTAIN, Status.NOT_MENTIONED, Status.ABSENT)


class MappedFinding(BaseModel):
    """What stands for one finding of the target.

    ``relation`` says what the sources mean, taken together, beside the target: broader sources are present
    where the target need not be, narrower ones absent where it may be present. ``note`` says how.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[str, ...] = Field(min_length=1)
    relation: Relation = "same"
    note: str | None = None

    @model_validator(mode="after")
    def _check_note(self) -> "MappedFinding":
        if self.relation != "same" and not self.note:
            raise ValueError(
                f"note must say what differs where the relation is {self.relation!r}, got none for the "
                f"sources {list(self.sources)}. Add it."
            )
        return self


class FindingsMapping(BaseModel):
    """How each finding of ``target`` follows from those of ``source``.

    Every finding of the target is either in ``findings`` or, with the reason, in ``unmapped``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: FindingsSet
    target: FindingsSet
    findings: dict[str, MappedFinding]
    unmapped: dict[str, str]

    @model_validator(mode="after")
    def _check_findings(self) -> "FindingsMapping":
        said = [*self.findings, *self.unmapped]
        for problem, keys in (
            ("which are not in it", set(said) - set(self.target.keys)),
            ("without a word on these", set(self.target.keys) - set(said)),
            ("which are both mapped and unmapped", set(self.findings) & set(self.unmapped)),
        ):
            if keys:
                raise ValueError(
                    f"a mapping must have each finding of {self.target.name!r} once, mapped or unmapped with "
                    f"the reason, got it {problem}: {sorted(keys)}."
                )
        sources = {key for mapped in self.findings.values() for key in mapped.sources}
        unknown = sorted(sources - set(self.source.keys))
        if unknown:
            raise ValueError(
                f"sources must be findings of {self.source.name!r}, got {unknown}. "
                f"It has {', '.join(self.source.keys)}."
            )
        return self

    @property
    def mapped_keys(self) -> tuple[str, ...]:
        """Target findings that have a counterpart, in the order of the target."""
        return tuple(key for key in self.target.keys if key in self.findings)

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each mapped finding whose sources do not mean the same."""
        return tuple(
            f"{key} from {' or '.join(mapped.sources)}, which is {mapped.relation}: {mapped.note}"
            for key, mapped in self.findings.items()
            if mapped.relation != "same"
        )


class _MappingFile(BaseModel):
    """A file: written out (``same`` for equal keys, ``findings``, ``unmapped``), or ``via`` others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    target: str
    same: tuple[str, ...] = ()
    findings: dict[str, MappedFinding] = {}
    unmapped: dict[str, str] = {}
    via: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_ways(self) -> "_MappingFile":
        if self.via and (self.same or self.findings or self.unmapped):
            raise ValueError(
                "via must stand alone, got it beside same, findings or unmapped. Write a mapping out, or "
                "chain others."
            )
        twice = sorted(set(self.same) & set(self.findings))
        if twice:
            raise ValueError(f"findings must not repeat what is in same, got {twice}. Remove one of the two.")
        return self


def load_mapping(name_or_path: str | Path) -> FindingsMapping:
    """Read a shipped mapping by name, ``SOURCE_to_TARGET``, or a user's own from a YAML file.

    A file names its two findings sets (shipped, or paths relative to it) and says of each target finding
    what stands for it, or it chains other mappings (``via``).

    Raises:
        ValueError: If there is no such mapping (the list is in the error), or its content is not valid.
        TypeError: If the file is not a table of keys.
    """
    return _load(name_or_path, ())


def map_statuses(statuses: pd.DataFrame, mapping: FindingsMapping) -> pd.DataFrame:
    """Return the statuses of the target findings.

    Present if a source is present, else uncertain if one is uncertain, else not_mentioned if one is not
    mentioned, else (all are absent) absent. None if a source is None. Unmapped findings are not_mentioned,
    but None in a row of None, of which labeling failed.

    Args:
        statuses: ``(N, F)`` status values with a column for each source key; None where unknown.
        mapping: From the findings of ``statuses``.

    Returns:
        ``(N, F')`` in the order of the target, same index.

    Raises:
        KeyError: If a source finding has no column.
        ValueError: If a cell is not a status.
    """
    columns = _columns_of(statuses, mapping)
    cells = pd.unique(columns.to_numpy(dtype=object).ravel())
    unknown = sorted(str(value) for value in cells if pd.notna(value) and value not in set(Status))
    if unknown:
        raise ValueError(
            f"statuses must be {', '.join(Status)} or None, got {unknown[:3]}. Numbers go through map_scores."
        )
    rank = {str(status): float(position) for position, status in enumerate(STATUS_ORDER)}
    ranks = columns.apply(lambda column: column.map(rank)).astype(np.float64)
    by_rank = {position: status for status, position in rank.items()}
    failed = statuses.isna().all(axis=1).to_numpy()
    mapped = {}
    for key in mapping.target.keys:
        if key in mapping.findings:
            lowest = ranks[list(mapping.findings[key].sources)].min(axis=1, skipna=False)
            mapped[key] = [by_rank.get(position) for position in lowest]
        else:
            mapped[key] = [None if is_failed else str(Status.NOT_MENTIONED) for is_failed in failed]
    return pd.DataFrame(mapped, index=statuses.index, columns=list(mapping.target.keys), dtype=object)


def map_scores(scores: pd.DataFrame, mapping: FindingsMapping) -> pd.DataFrame:
    """Return the scores of the target findings: the maximum over the sources.

    NaN for an unmapped finding, and where a source is NaN: the maximum of what is not known is not known.

    Args:
        scores: ``(N, F)`` numbers with a column for each source key.
        mapping: From the findings of ``scores``.

    Returns:
        ``(N, F')`` float64 in the order of the target, same index.

    Raises:
        KeyError: If a source finding has no column.
    """
    columns = _columns_of(scores, mapping).astype(np.float64)
    mapped = {
        key: columns[list(found.sources)].max(axis=1, skipna=False) for key, found in mapping.findings.items()
    }
    return (
        pd.DataFrame(mapped, index=scores.index).reindex(columns=list(mapping.target.keys)).astype(np.float64)
    )


def _columns_of(table: pd.DataFrame, mapping: FindingsMapping) -> pd.DataFrame:
    needed = list(dict.fromkeys(key for found in mapping.findings.values() for key in found.sources))
    missing = [key for key in needed if key not in table]
    if missing:
        raise KeyError(
            f"the table must have the findings of {mapping.source.name!r} that {mapping.target.name!r} is "
            f"made of, got none named {missing}. It has {', '.join(map(str, table.columns))}."
        )
    return table[needed]


def _load(name_or_path: str | Path, opened_by: tuple[DataFile, ...]) -> FindingsMapping:
    what = "mapping of findings"
    opened = open_data_file(what, "findings/mappings", name_or_path, opened_by)
    with problems_in(opened, what):
        file = _MappingFile.model_validate(opened.content)
    if file.via:
        links = [_load(link, (*opened_by, opened)) for link in file.via]
        return _chained(file, links)
    with problems_in(opened, what):
        return FindingsMapping(
            source=load_findings(beside(file.source, opened)),
            target=load_findings(beside(file.target, opened)),
            findings={**{key: MappedFinding(sources=(key,)) for key in file.same}, **file.findings},
            unmapped=file.unmapped,
        )


def beside(name_or_path: str, opened: DataFile) -> str | Path:
    """Return a path as seen from the file that names it; a name as it is."""
    if opened.folder is not None and (opened.folder / name_or_path).is_file():
        return opened.folder / name_or_path
    return name_or_path


def _chained(file: _MappingFile, links: Sequence[FindingsMapping]) -> FindingsMapping:
    joined = links[0]
    for link in links[1:]:
        if link.source != joined.target:
            raise ValueError(
                f"via must be a chain, got a mapping from {link.source.name!r} after one to "
                f"{joined.target.name!r}. Order them from source to target."
            )
        joined = _joined(joined, link)
    ends = (joined.source.name, joined.target.name)
    if ends != (file.source, file.target):
        raise ValueError(
            f"via must lead from {file.source!r} to {file.target!r}, got a chain from {ends[0]!r} to "
            f"{ends[1]!r}. Correct the chain, or the two names."
        )
    return joined


def _joined(first: FindingsMapping, second: FindingsMapping) -> FindingsMapping:
    """Put one mapping after another; a finding one of whose sources is unmapped is unmapped itself."""
    findings, unmapped = {}, dict(second.unmapped)
    for key, found in second.findings.items():
        lost = [source for source in found.sources if source in first.unmapped]
        if lost:
            unmapped[key] = "; ".join(first.unmapped[source] for source in lost)
            continue
        parts = [first.findings[source] for source in found.sources]
        relations = {part.relation for part in (*parts, found)} - {"same"}
        relation: Relation = (
            "same" if not relations else "overlapping" if len(relations) > 1 else relations.pop()
        )
        findings[key] = MappedFinding(
            sources=tuple(dict.fromkeys(source for part in parts for source in part.sources)),
            relation=relation,
            note="; ".join(dict.fromkeys(part.note for part in (*parts, found) if part.note)) or None,
        )
    return FindingsMapping(source=first.source, target=second.target, findings=findings, unmapped=unmapped)
