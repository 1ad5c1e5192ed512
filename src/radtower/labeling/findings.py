"""The finding lists, and the four things a report can say about a finding.

A list is data (``findings/*.yaml``), so that a user's own list needs no code. Mappings between lists are
``findings/mappings/*.yaml``, see ``findings_mapping.py``.
"""

import hashlib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from radtower.labeling.shipped_data import DataFile, open_data_file, problems_in, shipped_names


class Status(StrEnum):
    """What a report says about one finding.

    ``uncertain`` (the report hedges) and ``not_mentioned`` (the report is silent) stay apart until
    ``radtower.data.targets`` turns them into training targets.
    """

    PRESENT = "present"
    ABSENT = "absent"
    UNCERTAIN = "uncertain"
    NOT_MENTIONED = "not_mentioned"


class Finding(BaseModel):
    """One finding of a list: how it is stored, defined, recognized and asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    name: str = Field(min_length=1)
    definition: str = Field(min_length=1)
    synonyms: tuple[str, ...] = ()
    prompts: tuple[str, ...] = Field(min_length=1)
    parent: str | None = None


class FindingsSet(BaseModel):
    """An ordered list of findings; the order is the column order of every score and label matrix.

    ``parent`` names the broader finding of the same list, whose definition covers this one. It describes the
    concept: published labels need not follow it (in CT-RATE 29 % of consolidations carry no lung opacity).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    findings: tuple[Finding, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_keys(self) -> "FindingsSet":
        for field in ("key", "name"):
            values = [getattr(finding, field) for finding in self.findings]
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(
                    f"{field} must be unique in a findings set, got {repeated} twice. Rename one."
                )
        for finding in self.findings:
            if finding.parent is not None and finding.parent not in self.keys:
                raise ValueError(
                    f"parent must be a key of the same set, got {finding.parent!r} for {finding.key!r}. "
                    "Add the parent or set it to null."
                )
        _refuse_cycle({finding.key: finding.parent for finding in self.findings})
        return self

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Identifiers, in column order."""
        return tuple(finding.key for finding in self.findings)

    @property
    def names(self) -> tuple[str, ...]:
        """Names as the source data set writes them, in column order."""
        return tuple(finding.name for finding in self.findings)

    @property
    def by_key(self) -> dict[str, Finding]:
        """Findings by identifier."""
        return {finding.key: finding for finding in self.findings}

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any change of content, the wording included."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def identity(self) -> str:
        """Name and fingerprint: what labels made with this list were made with."""
        return f"{self.name} {self.fingerprint}"

    def subset(self, keys: Sequence[str]) -> "FindingsSet":
        """Keep some findings, in the order given; a parent that is left out becomes null.

        Raises:
            KeyError: If a key is not in the set.
        """
        unknown = sorted(set(keys) - set(self.keys))
        if unknown:
            raise KeyError(f"keys must be in {self.name!r}, got {unknown}. It has {', '.join(self.keys)}.")
        if tuple(keys) == self.keys:
            return self
        kept = [self.by_key[key] for key in keys]
        findings = [f if f.parent in keys else f.model_copy(update={"parent": None}) for f in kept]
        return FindingsSet(name=f"{self.name}[{','.join(keys)}]", findings=tuple(findings))


def _refuse_cycle(parents: dict[str, str | None]) -> None:
    for key in parents:
        chain = [key]
        while (parent := parents[chain[-1]]) is not None and parent not in chain:
            chain.append(parent)
        if parent == key:
            raise ValueError(
                f"parent must be a broader finding, got a circle: {' -> '.join([*chain, key])}. "
                "Set one of these parents to null."
            )


class _Override(BaseModel):
    """What a list says otherwise about a finding that it takes from another; unset fields stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    definition: str | None = None
    synonyms: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = None
    parent: str | None = None


class _FindingsFile(BaseModel):
    """A file: a list written out (``findings``), or one built on another (``base``).

    ``keys`` chooses and orders; without it, the base comes first and the further findings follow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    base: str | None = None
    keys: tuple[str, ...] | None = None
    overrides: dict[str, _Override] = {}
    findings: tuple[Finding, ...] = ()


def load_findings(name_or_path: str | Path) -> FindingsSet:
    """Read a shipped list by name, or a user's own list from a YAML file.

    A file may be built on another: ``base`` is a shipped name or a path relative to the file, ``keys`` the
    findings to keep, in order, ``overrides`` what differs, ``findings`` what is added. A parent that is left
    out becomes null.

    Raises:
        ValueError: If there is no such list, its content is not valid, or it is built on itself.
        TypeError: If the file is not a table of keys.
        KeyError: If ``keys`` or ``overrides`` name a finding that neither the base nor the file has.
    """
    return _load(name_or_path, ())


def is_shipped_name_of_another(findings: FindingsSet) -> bool:
    """Return whether a set that is not shipped has the name of one that is."""
    return findings.name in shipped_names("findings") and load_findings(findings.name) != findings


def _load(name_or_path: str | Path, opened_by: tuple[DataFile, ...]) -> FindingsSet:
    opened = open_data_file("findings set", "findings", name_or_path, opened_by)
    with problems_in(opened, "findings set"):
        file = _FindingsFile.model_validate(opened.content)
    inherited = () if file.base is None else _load(file.base, (*opened_by, opened)).findings
    base = {finding.key: finding for finding in inherited}
    _check_known(file, "overrides", set(file.overrides) - set(base), base)
    with problems_in(opened, "findings set"):
        base |= {key: _overridden(base[key], override) for key, override in file.overrides.items()}
    written_twice = [finding.key for finding in file.findings if finding.key in base]
    if written_twice:
        raise ValueError(
            f"findings must hold what the base of {file.name!r} has not, got {written_twice}. "
            "Put what differs under overrides."
        )
    everything = {**base, **{finding.key: finding for finding in file.findings}}
    if file.keys is not None:
        _check_known(file, "keys", set(file.keys) - set(everything), everything)
        # A key that comes twice stays: the check of the set below names it.
        chosen = [everything[key] for key in file.keys]
    else:
        chosen = [*base.values(), *file.findings]
    findings = tuple(_without_lost_parent(finding, chosen, inherited) for finding in chosen)
    with problems_in(opened, "findings set"):
        return FindingsSet(name=file.name, findings=findings)


def _overridden(finding: Finding, override: _Override) -> Finding:
    return Finding.model_validate({**finding.model_dump(), **override.model_dump(exclude_unset=True)})


def _without_lost_parent(
    finding: Finding, chosen: Sequence[Finding], inherited: Sequence[Finding]
) -> Finding:
    """Drop a parent that stayed in the base; one that the file itself names is left to the set's check."""
    kept = {other.key for other in chosen}
    lost = {(other.key, other.parent) for other in inherited if other.parent not in kept}
    is_lost = (finding.key, finding.parent) in lost
    return finding.model_copy(update={"parent": None}) if is_lost else finding


def _check_known(file: _FindingsFile, field: str, unknown: set[str], known: Iterable[str]) -> None:
    if unknown:
        raise KeyError(
            f"{field} of {file.name!r} must be findings that it or its base has, got {sorted(unknown)}. "
            f"There are {', '.join(known) or 'none'}."
        )


def match_finding(text: str, keys: Sequence[str], findings: FindingsSet) -> str:
    """Return the one of ``keys`` that a user means: itself, or its name or a synonym in ``findings``.

    Upper and lower case, hyphens and underscores do not matter.

    Args:
        text: What the user wrote.
        keys: What can be chosen; keys that ``findings`` does not have can be chosen by themselves.
        findings: Names and synonyms.

    Raises:
        KeyError: If the text means none of the keys, or several.
    """
    words = {key: {_plain(key)} for key in keys}
    for finding in findings.findings:
        if finding.key in words:
            words[finding.key] |= {_plain(word) for word in (finding.name, *finding.synonyms)}
    matches = [key for key in keys if _plain(text) in words[key]]
    if len(matches) != 1:
        raise KeyError(
            f"finding must be a key, name or synonym of one of {', '.join(keys)}, got {text!r}, which is of "
            f"{len(matches)}. Choose from the list."
        )
    return matches[0]


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())
