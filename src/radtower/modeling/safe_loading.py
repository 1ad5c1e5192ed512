"""Load weights of a folder or Hub id without reading a pickle and without running code that came with them.

Not exported: a user of an exported model decides that with ``trust_remote_code``.
"""

import json
from pathlib import Path
from typing import Any

from radtower.modeling.llm_sources.modeling_llm_files import shard_names

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# Where safetensors are missing, transformers and peft would look for the first two; the rest is how others
# save weights.
_PICKLES = (
    "pytorch_model*.bin",
    "adapter_model*.bin",
    "model*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.pkl",
    "*.pickle",
)
_OF_A_TRAINER = frozenset(
    {"optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "training_args.bin"}
)


def load_model(
    auto_class: Any, source: str | Path, *, is_remote_code_trusted: bool = False, **options: Any
) -> Any:
    """Call ``from_pretrained`` with safetensors only, and with classes of transformers or of this package.

    Args:
        auto_class: Auto class or model class.
        source: Folder or Hub id.
        is_remote_code_trusted: Whether code beside the weights may be run.
        options: Of ``from_pretrained``.

    Raises:
        ValueError: If the weights are a pickle, or the index of weights names another file than safetensors
            beside it.
        OSError: If a repository of the Hub has no safetensors.
    """
    refuse_pickles(source)
    return auto_class.from_pretrained(
        source, use_safetensors=True, trust_remote_code=is_remote_code_trusted, **options
    )


def refuse_pickles(source: str | Path) -> None:
    """Refuse a folder whose weights are pickled; what is not local is left to ``use_safetensors``.

    A pickle beside safetensors is let be, for public repositories often hold both: it is never read.

    Raises:
        ValueError: If there are pickled weights and no safetensors, or an index names other files.
    """
    folder = Path(source)
    if not folder.is_dir():
        return
    index = folder / WEIGHTS_INDEX
    if index.is_file():
        shard_names(json.loads(index.read_text(encoding="utf-8")), folder)
    if any(folder.glob("*.safetensors")):
        return
    for pattern in _PICKLES:
        for path in sorted(folder.glob(pattern)):
            if path.name not in _OF_A_TRAINER and not path.name.startswith("rng_state"):
                raise ValueError(
                    f"the weights must be safetensors, got {path}, a pickle, which is never read: it may run "
                    "code. If you trust it, convert it once, with weights = torch.load(path, "
                    "weights_only=True) and safetensors.torch.save_file({name: w.clone().contiguous() for "
                    f"name, w in weights.items()}}, '{WEIGHTS}')."
                )
