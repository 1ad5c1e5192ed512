"""Weights of a checkpoint, all of them, into the model they came from.

transformers saves some families (ViT, for one) under the names of older releases and renames them back in
``from_pretrained``; its Trainer loads a checkpoint by the names of the file, and goes on with random weights
where they differ, with a warning among many.
"""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from radtower.modeling.safe_loading import load_model


def load_renamed_weights(model: Any, checkpoint: str | Path) -> bool:
    """Load weights whose names the file has otherwise; nothing where they are those of the model.

    Args:
        model: Not wrapped.
        checkpoint: Folder with ``model.safetensors``, whole or in shards.

    Returns:
        Whether they were loaded here.

    Raises:
        ValueError: If the checkpoint lacks weights of the model.
    """
    folder = Path(checkpoint)
    names = _names(folder)
    own = model.state_dict()
    if names is None or not isinstance(model, PreTrainedModel) or set(own) <= names:
        return False
    family: Any = type(model)
    loaded, report = load_model(family, folder, config=model.config, output_loading_info=True)
    missing = sorted({*report["missing_keys"]} | (set(own) - set(loaded.state_dict())))
    if missing:
        raise ValueError(
            f"a checkpoint must hold all weights of the model, got {folder.name} without {len(missing)}, "
            f"such as {missing[0]}. Resume from another checkpoint."
        )
    # In place, and each in the precision it has here.
    model.load_state_dict({name: value for name, value in loaded.state_dict().items() if name in own})
    return True


def _names(folder: Path) -> set[str] | None:
    """Names in the files of weights; None where there are none of this kind, as for adapters."""
    files = [folder / SAFE_WEIGHTS_NAME]
    if (folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        files = sorted(folder.glob("model-*.safetensors"))
    names: set[str] = set()
    for file in files:
        if not file.exists():
            return None
        with safe_open(file, "pt") as weights:
            names |= set(weights.keys())
    return names
