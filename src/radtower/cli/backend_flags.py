"""Flags that belong to one backend of ``radtower label`` and would be ignored by the others."""

from collections.abc import Mapping
from dataclasses import fields


def refuse_flags(options: type, flags: Mapping[str, object], owner: str, backend: str) -> None:
    """Refuse flags that are given to a backend they do not belong to.

    Args:
        options: Dataclass of the flags, whose defaults are those of the command.
        flags: Values of the command, by field of ``options``.
        owner: Backend that the flags belong to.
        backend: Backend that was asked for.

    Raises:
        ValueError: If a flag does not have its default.
    """
    defaults = {field.name: field.default for field in fields(options)}
    given = [flag_name(name) for name, value in flags.items() if value != defaults[name]]
    if given:
        raise ValueError(
            f"--backend must be {owner} for {', '.join(given)}, got {backend}. Leave them out, or change it."
        )


def flag_name(field: str) -> str:
    """Name of a field on the command line."""
    return "--" + field.replace("_", "-")
