"""Where a model was loaded from: what lies beside its weights is read from there, at first use."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

KEPT_SETTINGS = ("subfolder", "revision", "cache_dir", "token", "local_files_only")


@dataclass(frozen=True)
class LoadedFrom:
    """Arguments with which another file of the same place is found, from any working directory.

    Args:
        path: Absolute folder, or Hub id.
        settings: For ``from_pretrained``. An access token stays in memory: no copy or pickle has it.
    """

    path: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> "LoadedFrom":
        """Note what ``from_pretrained`` of a model is called with, before anybody changes the folder."""
        kept = {name: settings[name] for name in KEPT_SETTINGS if settings.get(name) is not None}
        if "cache_dir" in kept:
            kept["cache_dir"] = str(Path(kept["cache_dir"]).absolute())
        if str(path) and Path(path).is_dir():  # the empty path would be the working directory
            # Joined: in a subfolder without a tokenizer, transformers would take that of the folder above.
            return cls(str(Path(path, kept.pop("subfolder", "")).absolute()), kept)
        return cls(str(path), kept)

    def __repr__(self) -> str:
        return f"LoadedFrom({self.path!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave the access token out of copies and pickles."""
        return {
            "path": self.path,
            "settings": {name: value for name, value in self.settings.items() if name != "token"},
        }

    def load(self, auto_class: Any, model: PreTrainedModel) -> Any:
        """Load what lies beside the weights of ``model``: a tokenizer or a processor.

        Raises:
            OSError: If there is none that loads.
        """
        # Remote code is trusted only for the repository that this very class was loaded from; without it
        # transformers would ask the user, even for a tokenizer that needs none.
        is_remote = type(model).__module__.startswith("transformers_modules.")
        revision = getattr(model.config, "_commit_hash", None) or self.settings.get("revision")
        settings = {**self.settings, "revision": revision, "trust_remote_code": is_remote}
        try:
            return auto_class.from_pretrained(self.path, **settings)
        except (OSError, ValueError) as error:  # which of the two, and how clear, depends on the files
            name = auto_class.__name__.removeprefix("Auto").lower()
            raise OSError(
                f"{name} must lie beside the weights, got none that loads in {self.path!r}. "
                f"Save one there, or set model.{name}."
            ) from error
