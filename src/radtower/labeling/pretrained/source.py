"""Find out where a model is: a folder, a file, or the Hub; refuse a folder that lacks files."""

import os
from pathlib import Path

_CONFIGURATIONS = ("config.json", "adapter_config.json")


def find_source(path: str | os.PathLike[str], *, takes_gguf: bool = False) -> Path | str:
    """Find a model; meant to be called before anything is loaded or asked from the Hub.

    Args:
        path: Folder, ``.gguf`` file, or Hub id ``owner/name``.
        takes_gguf: Whether a ``.gguf`` file will do.

    Returns:
        A path where it is local, else the Hub id.

    Raises:
        FileNotFoundError: If ``path`` reads like a local one and is none, or the folder has no configuration
            or no safetensors weights.
        ValueError: If it is another file.
    """
    text = os.fspath(path)
    kinds = "folder, a .gguf file or a Hub id" if takes_gguf else "folder or a Hub id"
    local = Path(text).expanduser()
    if local.is_dir():
        _check_folder(local)
        return local
    if local.exists():
        if not (takes_gguf and local.suffix == ".gguf"):
            raise ValueError(
                f"path must be an existing {kinds}, got the file {text!r}. Name the folder that holds it."
            )
        return local
    if _reads_like_a_path(path, text):
        raise FileNotFoundError(
            f"path must be an existing {kinds}, got {text!r}. "
            "Correct the path; a Hub id is written owner/name."
        )
    return text


def _check_folder(folder: Path) -> None:
    missing = None
    if not any((folder / name).is_file() for name in _CONFIGURATIONS):
        missing = "config.json"
    elif not any(folder.glob("*.safetensors")):
        missing = "safetensors weights"
    if missing:
        raise FileNotFoundError(
            f"{folder} must hold a whole model, got no {missing}. Download the model again, or name another "
            "folder; only safetensors are read. A pickle may run code; if you trust it, convert it with "
            "weights = torch.load(path, weights_only=True) and safetensors.torch.save_file({name: "
            "w.clone().contiguous() for name, w in weights.items()}, 'model.safetensors')."
        )


def _reads_like_a_path(path: str | os.PathLike[str], text: str) -> bool:
    is_local = isinstance(path, os.PathLike) or text.startswith((".", "/", "~")) or text.endswith(".gguf")
    return is_local or "\\" in text or text.count("/") != 1 or Path(text.split("/")[0]).is_dir()
