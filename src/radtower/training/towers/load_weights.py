"""Loading a trained tower, all of it, and whether it gives what a dual tower reads."""

from typing import Any

import torch

from radtower.configuration.configuration_medclip import tower_width
from radtower.modeling.modeling_towers import Pooling
from radtower.modeling.safe_loading import load_model


def load_whole(tower: Any, source: str, pooling: Pooling = "pooler", **settings: Any) -> Any:
    """Load a trained tower in float32: a partly random one trains on and nobody notices.

    Args:
        tower: Model class or Auto class.
        source: Folder or Hub id.
        pooling: Of the dual tower. Weights of a pooler that is not read may be missing.
        **settings: For ``from_pretrained``.

    Raises:
        ValueError: If weights are missing.
    """
    model, report = load_model(tower, source, dtype=torch.float32, output_loading_info=True, **settings)
    unread = () if pooling == "pooler" else ("pooler.",)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(unread))
    if missing:
        raise ValueError(
            f"{type(model).__name__} must find all its weights, got {source} without {len(missing)}, such as "
            f"{missing[0]}. Point to the folder of a trained tower of this shape, or choose a pooling that "
            "does not read them."
        )
    return model


def require_vectors(tower: Any, pooled: torch.Tensor) -> None:
    """Refuse a tower whose vectors are not as its projection is built for.

    Args:
        tower: With a configuration.
        pooled: What it gives for one sample, pooled.

    Raises:
        ValueError: If that is not one vector of the width of its configuration.
    """
    width = tower_width(tower.config)
    if pooled.shape != (1, width):
        raise ValueError(
            f"a tower must give one vector of {width} numbers, as its configuration says, got "
            f"{tuple(pooled.shape)}. Choose another pooling, or another tower."
        )
