"""The finding lists, and the four things a report can say about a finding.

A list is data (``findings/*.yaml``), so that a user's own list needs no code.
"""

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from importlib import resources
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator


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

    ``parent`` names the broader finding of the same list. It describes the concept: published labels need
    not follow it (in CT-RATE 14 % of coronary calcifications carry no arterial wall calcification).
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
        return self

    @property
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


def load_findings(name_or_path: str | Path) -> FindingsSet:
    """Read a shipped list by name, or a user's own list from a YAML file.

    Raises:
        ValueError: If there is no such list, or its content is not valid.
    """
    shipped = {
        item.name.removesuffix(".yaml"): item
        for item in (resources.files("radtower.labeling") / "findings").iterdir()
        if item.name.endswith(".yaml")
    }
    if str(name_or_path) in shipped:
        text = shipped[str(name_or_path)].read_text(encoding="utf-8")
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text(encoding="utf-8")
    else:
        raise ValueError(
            f"name_or_path must be a shipped findings set or a YAML file, got {str(name_or_path)!r}. "
            f"Shipped: {', '.join(sorted(shipped))}."
        )
    return FindingsSet.model_validate(yaml.safe_load(text))


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
