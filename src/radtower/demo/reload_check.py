"""Proof that an exported folder works without this package: load it in a process that cannot import it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from radtower.modeling.modeling_medclip import MedCLIPModel

# Runs alone in a fresh interpreter; only torch, transformers and what they need may be imported.
SCRIPT = """
import json, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "radtower":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import torch
from transformers import AutoModel, AutoProcessor
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
volume = torch.linspace(-1000, 400, 24 * 40 * 40).reshape(24, 40, 40)
inputs = processor(images=[volume], spacings_mm=[(6.0, 5.0, 5.0)], text=["No pleural effusion."])
with torch.no_grad():
    output = model(**inputs)
print(json.dumps([output.image_embeds.tolist(), output.text_embeds.tolist()]))
"""


def reload_without_the_package(model_folder: Path, export: Path) -> float:
    """Return the largest difference between embeddings of the package and of the exported code.

    Args:
        model_folder: The trained model.
        export: Its export.

    Raises:
        RuntimeError: If the export cannot be loaded on its own.
    """
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(  # noqa: S603 -- this interpreter, our own script
            [sys.executable, "-c", SCRIPT, str(export.resolve())],
            capture_output=True,
            text=True,
            check=False,
            cwd=cache,
            env=os.environ | {"HF_HOME": cache, "HF_HUB_OFFLINE": "1"},
        )
    if done.returncode:
        raise RuntimeError(
            f"the export must load on its own, got an error from {export}:\n{done.stderr[-1500:]}"
        )
    image, text = (torch.tensor(rows) for rows in json.loads(done.stdout.splitlines()[-1]))
    model = MedCLIPModel.from_pretrained(model_folder, dtype=torch.float32).eval()
    volume = torch.linspace(-1000, 400, 24 * 40 * 40).reshape(24, 40, 40)
    inputs = model.processor(images=[volume], spacings_mm=[(6.0, 5.0, 5.0)], text=["No pleural effusion."])
    with torch.no_grad():
        output = model(**inputs)
    return max(
        (output.image_embeds - image).abs().max().item(), (output.text_embeds - text).abs().max().item()
    )
