"""What a zero-shot number is measured by: findings asked for, findings labeled, prompts, score and unit.

A protocol is data (``protocols/*.yaml``), so that a user's own needs no code.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from radtower.data.findings_catalog import (
    DataFile,
    FindingsMapping,
    FindingsSet,
    beside,
    is_shipped_name_of_another,
    load_findings,
    load_mapping,
    open_data_file,
    problems_in,
)
from radtower.modeling.modeling_zero_shot import PromptPair, Score, prompt_pairs

Unit = Literal["volume", "study"]
Phrases = Literal["name", "prompt"]
ALL_SPLITS = "all"
_WHAT = "zero-shot protocol"
_OVERRIDABLE = ("phrases", "prompts", "score", "unit", "split")


class Protocol(BaseModel):
    """A protocol with its findings sets.

    ``asked`` are the findings of the prompts, ``labels`` those that are measured; ``mapping`` leads from one
    to the other and is None where they are the same. ``class_sets`` are further sets of the labels, over each
    of which a mean is taken. ``phrases`` says what goes into the prompts: the ``name`` of a finding as it was
    published, or the first ``prompt`` of its list. ``prompts`` are names of pairs or pairs, see
    :func:`~radtower.modeling.modeling_zero_shot.prompt_pairs`. A ``unit`` is a ``volume``, or a ``study``,
    with the mean score of its reconstructions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    source: str = Field(min_length=1)
    asked: FindingsSet
    labels: FindingsSet
    mapping: FindingsMapping | None = None
    class_sets: tuple[FindingsSet, ...] = ()
    phrases: Phrases
    prompts: tuple[str | PromptPair, ...]
    score: Score
    unit: Unit
    split: Literal["train", "validation", "test", "all"]

    @field_validator("prompts", mode="before")
    @classmethod
    def _check_prompts(cls, value: Any) -> Any:
        if not isinstance(value, str | list | tuple):
            raise ValueError(f"prompts must be a name or a list, got {value!r}.")  # noqa: TRY004 -- for pydantic
        listed = [value] if isinstance(value, str) else list(value)
        pairs = [tuple(entry) if isinstance(entry, list) else entry for entry in listed]
        try:
            prompt_pairs(pairs)
        except (KeyError, TypeError) as error:  # which pydantic would let through
            raise ValueError(error.args[0]) from None
        return pairs

    @model_validator(mode="after")
    def _check_sets(self) -> "Protocol":
        ends = (self.asked, self.labels)
        if self.mapping is not None and (self.mapping.source, self.mapping.target) != ends:
            raise ValueError(
                f"mapping must lead from {self.asked.name!r} to {self.labels.name!r}, got one from "
                f"{self.mapping.source.name!r} to {self.mapping.target.name!r}. Name another."
            )
        if self.mapping is None and self.asked != self.labels:
            raise ValueError(
                f"mapping must be named where asked and labels differ, got none from {self.asked.name!r} to "
                f"{self.labels.name!r}."
            )
        names = [self.labels.name, *(further.name for further in self.class_sets)]
        if len(set(names)) < len(names):
            raise ValueError(
                f"further_class_sets must be others than labels, each once, got {', '.join(names)}. "
                "Leave out what repeats."
            )
        for further in self.class_sets:
            unknown = sorted(set(further.keys) - set(self.labels.keys))
            if unknown:
                raise ValueError(
                    f"further_class_sets must hold findings of {self.labels.name!r}, got {unknown} in "
                    f"{further.name!r}. Leave it out."
                )
        return self

    @property
    def asked_keys(self) -> tuple[str, ...]:
        """Findings of ``asked`` whose scores are needed, in its order."""
        if self.mapping is None:
            return self.asked.keys
        needed = {key for found in self.mapping.findings.values() for key in found.sources}
        return tuple(key for key in self.asked.keys if key in needed)

    @property
    def asked_phrases(self) -> tuple[str, ...]:
        """What goes into the prompts, in the order of ``asked_keys``."""
        chosen = [self.asked.by_key[key] for key in self.asked_keys]
        return tuple(finding.name if self.phrases == "name" else finding.prompts[0] for finding in chosen)

    @property
    def description(self) -> str:
        """What was done, in one line, as results say it."""
        prompts = " + ".join(_shown(entry) for entry in self.prompts)
        score = self.score.replace("_", " ")
        return f"{self.name}: prompts {prompts} of finding {self.phrases}s, {score}, per {self.unit}"

    def overridden(self, **changes: Any) -> "Protocol":
        """Return the protocol with other settings; None keeps one.

        Raises:
            ValueError: If a setting does not exist, or its value is not valid.
        """
        unknown = sorted(set(changes) - set(_OVERRIDABLE))
        if unknown:
            raise ValueError(f"changes must be of {', '.join(_OVERRIDABLE)}, got {unknown}.")
        given = {name: value for name, value in changes.items() if value is not None}
        with problems_in(DataFile(self.name, {}, None), _WHAT):
            return Protocol.model_validate({**dict(self), **given})


class _ProtocolFile(BaseModel):
    """A file: findings sets and mapping by name, or as paths relative to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    asked: str
    labels: str | None = None
    mapping: str | None = None
    further_class_sets: tuple[str, ...] = ()
    phrases: Any = "name"
    prompts: Any
    score: Any = "softmax"
    unit: Any = "volume"
    split: Any = "test"


def load_protocol(name_or_path: str | Path) -> Protocol:
    """Read a shipped protocol by name, or a user's own from a YAML file.

    Without ``labels``, they are the findings asked for; without ``mapping``, it is the one named
    ``ASKED_to_LABELS``.

    Raises:
        ValueError: If there is no such protocol (the list is in the error), or its content is not valid.
        TypeError: If the file is not a table of keys.
    """
    opened = open_data_file(_WHAT, "protocols", name_or_path, package=__package__ or "")
    with problems_in(opened, _WHAT):
        file = _ProtocolFile.model_validate(opened.content)
    labels = file.labels or file.asked
    mapping = file.mapping
    if mapping is None and labels != file.asked:
        mapping = f"{Path(file.asked).stem}_to_{Path(labels).stem}"
    content = {
        **file.model_dump(exclude={"further_class_sets"}),
        "asked": load_findings(beside(file.asked, opened)),
        "labels": load_findings(beside(labels, opened)),
        "mapping": None if mapping is None else load_mapping(beside(mapping, opened)),
        "class_sets": tuple(load_findings(beside(name, opened)) for name in file.further_class_sets),
    }
    with problems_in(opened, _WHAT):
        return Protocol.model_validate(content)


def class_set_name(findings: FindingsSet, num_measured: int) -> str:
    """Name a set as results do: with a fingerprint where it only has the name of a shipped one."""
    name = findings.identity if is_shipped_name_of_another(findings) else findings.name
    num_findings = len(findings.keys)
    return name if num_measured == num_findings else f"{num_measured} of {num_findings} findings of {name}"


def _shown(entry: str | PromptPair) -> str:
    return entry if isinstance(entry, str) else f'"{entry[0]}" / "{entry[1]}"'
