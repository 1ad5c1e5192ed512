import pytest

from radtower.hub_cards.code import ALLOWED_PACKAGES, export_code
from radtower.hub_cards.code_safety import refuse_unsafe_code
from radtower.hub_cards.families import FAMILIES, PACKAGE


@pytest.fixture
def check(tmp_path):
    """Check one file, with a neighbor."""
    (tmp_path / "losses.py").write_text("")

    def run(text):
        path = tmp_path / "modeling.py"
        path.write_text(text, encoding="utf-8")
        refuse_unsafe_code([path, tmp_path / "losses.py"], ALLOWED_PACKAGES)

    return run


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("eval('1')", "eval"),
        ("exec('1')", "exec"),
        ("run = eval", "eval"),
        ("compile('1', '', 'exec')", "compile"),
        ("__import__('os')", "__import__"),
        ("x = globals()['ev' + 'al']", "globals"),
        ("x = __builtins__", "__builtins__"),
        ("breakpoint()", "breakpoint"),
        ("import subprocess", "an import of subprocess"),
        ("def f():\n    import pickle", "an import of pickle"),
        ("from urllib import request", "an import of urllib"),
        ("import socket as s", "an import of socket"),
        ("import numpy", "an import of numpy"),
        ("import importlib", "an import of importlib"),
        ("import sys", "an import of sys"),
        ("import shutil", "an import of shutil"),
        ("import os\nos.system('x')", "os.system"),
        ("import os as o\no.system('x')", "os.system"),
        ("from os import system", "os.system"),
        ("import os\nx = os.environ", "os.environ"),
        ("import os\ngetattr(os, 'system')('x')", "os.system"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("import torch as t\nt.load('x')", "torch.load"),
        ("from torch import load", "torch.load"),
        ("import torch.hub", "torch.hub"),
        ("import torch.nn\ntorch.hub.load('x')", "torch.hub"),
        ("import torch\ngetattr(torch, 'save')", "torch.save"),
        ("from transformers.utils import import_utils as u\nu.os.system('x')", "os"),
        ("from transformers.utils.import_utils import os", "transformers.utils.import_utils.os"),
        ("import torch.utils.cpp_extension as c", "torch.utils.cpp_extension"),
        ("from torch.jit import load", "torch.jit.load"),
        ("from huggingface_hub import HfApi", "huggingface_hub.HfApi"),
        ("import huggingface_hub as h\nh.login()", "huggingface_hub.login"),
        ("open('x', 'w')", "open"),
        ("open('x', mode='ab')", "open"),
        ("open('x', m)", "open"),
        ("open('x', **m)", "open"),
        ("x = open", "open"),
        ("p.open('r+')", "open"),
        ("p.write_text('x')", "write_text"),
        ("p.unlink()", "unlink"),
        ("p.mkdir()", "mkdir"),
        ("().__class__.__base__.__subclasses__()", "__subclasses__"),
        ("f.__globals__", "__globals__"),
        ("A.from_pretrained('x', trust_remote_code=True)", "trust_remote_code=True"),
        ("model.push_to_hub('x')", "push_to_hub"),
        ("from .other import x", r"an import of \.other\.x, which is not beside it"),
        ("from ..losses import x", r"an import of \.\.losses\.x, which is not beside it"),
        ("from . import losses", r"an import of \.\.losses, which is not beside it"),
    ],
)
def test_code_that_does_more_than_compute_is_refused_with_its_line(check, text, found):
    line = text.count("\n") + 2
    with pytest.raises(ValueError, match=rf"got modeling\.py:{line}, which has {found}\. Move that"):
        check(f"import math\n{text}\n")


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.fspath('x')\nx: os.PathLike\nos.register_at_fork()",
        "open('x')\nopen('x', 'rb')\np.open()\np.open('rb')\nopen('x', mode='r')",
        "import re, torch\nre.compile('x')\ntorch.compile(f)\nmodel.eval()\ntorch.nn.Linear(1, 1)",
        "from .losses import x\nfrom huggingface_hub import snapshot_download",
        "import torch.nn.functional as F\nF.relu(x)\ny.load()\nx.load_state_dict(y)",
        "A.from_pretrained('x', trust_remote_code=False)\nA(trust_remote_code=is_trusted)",
        "'eval(1)'\ncompile = 1\ngetattr(x, name)\ngetattr(x, 'width')",
    ],
)
def test_code_that_computes_passes(check, text):
    check(text)


def test_what_is_no_python_is_refused(check):
    with pytest.raises(ValueError, match=r"must be Python, got modeling\.py:2, which is none"):
        check("x = 1\ndef\n")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_code_of_each_family_passes(family, tmp_path):
    files = [PACKAGE / name for name in FAMILIES[family].model_files]
    assert len(export_code(files, tmp_path)) >= 4


def test_the_export_refuses_unsafe_code(tmp_path):
    (tmp_path / "modeling_x.py").write_text("import torch\n\nstate = torch.load('x')\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"got modeling_x\.py:3, which has torch\.load"):
        export_code([tmp_path / "modeling_x.py"], tmp_path / "out")
