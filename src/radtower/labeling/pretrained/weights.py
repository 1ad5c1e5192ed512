"""Load a model of one kind, and say what is wrong with files that are damaged or of another kind."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

_CLASSIFIER = "ForSequenceClassification"
_KINDS: dict[Any, tuple[str, str]] = {
    AutoModelForCausalLM: (
        "a causal language model",
        "Use the backend 'encoder' for a labeler or another text classifier.",
    ),
    AutoModelForSequenceClassification: (
        "a text classifier",
        "Use the backend 'llm' for a language model, or train one with radtower train labeler.",
    ),
}


def load_weights(
    auto_class: Any, source: str | Path, *, is_remote_code_trusted: bool = False, **options: Any
) -> tuple[Any, list[str]]:
    """Load a model; no pickle is read, and code that comes with it is run only if that is trusted.

    Args:
        auto_class: ``AutoModelForCausalLM`` or ``AutoModelForSequenceClassification``.
        source: Folder or Hub id.
        is_remote_code_trusted: Whether code beside the weights may be run.
        options: Of ``from_pretrained``; with a ``gguf_file`` the kind is not looked at before.

    Returns:
        The model, and names of the weights that it lacks, sorted.

    Raises:
        ValueError: If the model is of another kind or needs code that is not trusted, or its weights are
            damaged, missing in part, or of another shape than its configuration says.
    """
    if "gguf_file" not in options:
        _check_kind(auto_class, source, is_remote_code_trusted)
        options = {"use_safetensors": True, **options}
    try:
        model, report = auto_class.from_pretrained(
            source, output_loading_info=True, trust_remote_code=is_remote_code_trusted, **options
        )
    except (FileNotFoundError, RuntimeError, SafetensorError) as error:
        found = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{source} must hold whole weights that fit its configuration, got {found}. "
            "Download the model again."
        ) from None
    return model, sorted(report["missing_keys"])


def _check_kind(auto_class: Any, source: str | Path, is_remote_code_trusted: bool) -> None:
    if Path(source, "adapter_config.json").is_file():
        return  # the configuration is that of its base model
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=is_remote_code_trusted)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{source} must be a model of transformers or of this package, got one that brings code of its "
            "own. Read that code; if you trust it, say so with --trust-remote-code (backend 'encoder')."
        ) from None
    if is_remote_code_trusted and auto_class.__name__ in getattr(config, "auto_map", ()):
        return
    # A classifier with tied embeddings would pass for a language model: nothing of the latter is missing.
    is_classifier = any(name.endswith(_CLASSIFIER) for name in config.architectures or ())
    is_other = type(config) not in auto_class._model_mapping
    if is_other or (is_classifier and auto_class is AutoModelForCausalLM):
        kind, fix = _KINDS[auto_class]
        names = ", ".join(config.architectures or ()) or "a model"
        raise ValueError(f"{source} must be {kind}, got {names} of type {config.model_type!r}. {fix}")
