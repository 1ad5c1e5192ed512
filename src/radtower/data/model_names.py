"""What a model is called in public."""

from pathlib import PurePath, PurePosixPath, PureWindowsPath


def without_machine_path(model_id: str) -> str:
    """Return the last part of a local path; an id of the Hub or of an endpoint as it is."""
    for kind in (PurePosixPath, PureWindowsPath):
        path: PurePath = kind(model_id)
        if path.is_absolute() or model_id.startswith((".", "~")):
            return path.name
    return model_id
