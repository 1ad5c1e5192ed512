import configparser
from pathlib import Path

import pytest
from transformers import AutoConfig

from radtower.cli import extras

SETUP_CFG = Path(__file__).parents[2] / "setup.cfg"
MODULE_OF = {"faiss-cpu": "faiss"}  # where it is not the name of the package


def test_lists_the_extras_that_can_be_installed():
    parser = configparser.ConfigParser()
    parser.read(SETUP_CFG, encoding="utf-8")
    listed = {
        name: value.split() for name, value in parser["options.extras_require"].items() if name != "dev"
    }
    assert set(extras.EXTRAS) == set(listed)
    for name, modules in extras.EXTRAS.items():
        packages = [requirement.split(">=")[0] for requirement in listed[name]]
        brought = [MODULE_OF.get(package, package.replace("-", "_")) for package in packages]
        assert sorted(brought) == sorted(modules)


def test_names_the_extra_and_only_the_missing_module(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "io", ("torch", "module_nobody_has"))
    with pytest.raises(ImportError, match=r"needs module_nobody_has from .*pip install 'radtower\[io\]'"):
        extras.require("io")


def test_accepts_an_extra_that_is_installed(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "io", ("torch",))
    extras.require("io")


def test_models_are_known_to_transformers_after_registering():
    extras.register_models()
    extras.register_models()
    assert AutoConfig.for_model("medclip").model_type == "medclip"
