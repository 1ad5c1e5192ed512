"""Published with ``radtower push``, loaded where nothing of RadTower is: in a virtual environment of its own.

It is made without an index: what torch and transformers require is linked from here, and nothing else.
``benchmarks/compatibility.py`` installs from an index, also the oldest transformers that is supported.
"""

import json
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from hub_contract.stock_models import AUTO_CLASSES, build, build_processor
from local_hub import run_local_hub

PUSH = "import sys; sys.argv[0] = 'radtower'; from radtower_command import main; main()"
TEXTS = ["no nodule", "there is small effusion"]
LOAD = """
import importlib.util, json, sys
for absent in sys.argv[3].split(","):
    assert importlib.util.find_spec(absent) is None, absent
import torch, transformers
name, repo, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[4])
model = getattr(transformers, name).from_pretrained(repo, trust_remote_code=True).eval()
kind = "AutoTokenizer" if "Sequence" in name else "AutoProcessor"
processor = getattr(transformers, kind).from_pretrained(repo, trust_remote_code=True)
with torch.no_grad():
    if kind == "AutoTokenizer":
        numbers = model(**processor(texts, padding=True, return_tensors="pt")).logits
    else:
        scan = torch.linspace(-1000, 400, 512).reshape(8, 8, 8)
        inputs = processor(images=[scan], spacings_mm=[(3.0, 3.0, 3.0)], text=texts)
        numbers = model(**inputs).logits_per_image
print("found", json.dumps(numbers.tolist()))
"""


def _required(*names: str) -> dict[str, Distribution]:
    """These packages with all that they require, as installed here."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in found:
            found[name] = distribution(name)
            needs = map(Requirement, found[name].requires or ())
            waiting += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return found


def _environment(folder: Path, *packages: str) -> Path:
    """Make a virtual environment with these packages alone; return its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in _required(*packages).values():
        tops = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(package.locate_file(top))))
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "packages", "absent"),
    [
        ("text", ("torch", "transformers"), "radtower,PIL,accelerate,datasets,scipy"),
        ("pair", ("torch", "transformers", "pillow"), "radtower,accelerate,datasets,scipy,SimpleITK"),
    ],
)
def test_what_was_published_loads_in_a_fresh_environment(kind, packages, absent, tmp_path):
    model, trained = build(kind).eval(), tmp_path / "trained"
    model.save_pretrained(trained)
    build_processor(kind).save_pretrained(trained)
    python = _environment(tmp_path / "fresh", *packages)
    name = AUTO_CLASSES[kind][0].__name__
    with run_local_hub() as hub:
        home = hub.environment(tmp_path / "home")
        push = [sys.executable, "-c", PUSH, "push", str(trained), "tester/model", "--license", "mit"]
        pushed = subprocess.run(push, env=home, capture_output=True, text=True)
        assert pushed.returncode == 0, pushed.stderr
        assert hub.repo("models", "tester/model").is_private
        bare = {key: text for key, text in hub.environment(tmp_path / "other").items() if key != "PYTHONPATH"}
        load = [str(python), "-c", LOAD, name, "tester/model", absent, json.dumps(TEXTS)]
        loaded = subprocess.run(load, env=bare, capture_output=True, text=True, cwd=tmp_path)
        assert loaded.returncode == 0, loaded.stderr[-3000:]
        stranger = hub.environment(tmp_path / "stranger", token=None)
        stranger.pop("PYTHONPATH", None)
        refused = subprocess.run(load, env=stranger, capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 1
    assert "tester/model is not a local folder and is not a valid model identifier" in refused.stderr
    assert not list((tmp_path / "stranger").rglob("*.safetensors"))
    found = json.loads(loaded.stdout.partition("found ")[2])
    torch.testing.assert_close(torch.tensor(found), _here(kind, model))


def _here(kind: str, model: torch.nn.Module) -> torch.Tensor:
    """The same numbers from the model that was published."""
    processor = build_processor(kind)
    with torch.no_grad():
        if kind == "text":
            return model(**processor(TEXTS, padding=True, return_tensors="pt")).logits
        scan = torch.linspace(-1000, 400, 512).reshape(8, 8, 8)
        inputs = processor(images=[scan], spacings_mm=[(3.0, 3.0, 3.0)], text=TEXTS)
        return model(**inputs).logits_per_image
