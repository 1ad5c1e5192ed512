"""What a command needs before it can start: optional packages, and the models registered."""

from importlib.util import find_spec

# Extra in setup.cfg -> the top-level modules it brings.
EXTRAS = {
    "cluster": ("datatrove",),
    "demo": ("gguf", "matplotlib"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "faiss": ("faiss",),
    "label": ("aiohttp",),
    "local-llm": ("gguf", "xgrammar"),
    "plots": ("matplotlib",),
    "privacy": ("presidio_analyzer",),
    "radeval": ("radeval",),
    "st": ("sentence_transformers",),
    "text": ("bm25s",),
}


def require(extra: str) -> None:
    """Call before the imports of a command that needs ``extra``.

    Raises:
        ImportError: If a module of the extra is not installed.
    """
    missing = _missing(extra)
    if missing:
        raise ImportError(
            f"this command needs {', '.join(missing)} from the extra {extra!r}. "
            f"Run pip install 'radtower[{extra}]'."
        )


def is_installed(extra: str) -> bool:
    """Whether a command can do what needs ``extra``."""
    return not _missing(extra)


def _missing(extra: str) -> list[str]:
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def register_models() -> None:
    """Do what ``import radtower`` does for everyone else: make the models known to transformers."""
    from radtower.registration import register

    register()
