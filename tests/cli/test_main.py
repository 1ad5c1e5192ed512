import configparser
import os
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError

from radtower import __version__
from radtower.cli import data

ROOT = Path(__file__).parents[2]
# What takes the seconds that --help must not: none of it is needed to print text.
HEAVY = (
    *("SimpleITK", "accelerate", "datasets", "matplotlib", "numpy", "pandas", "peft", "pyarrow", "scipy"),
    *("sklearn", "tokenizers", "torch", "transformers"),
)
# What pip writes for the entry point, and then which packages were loaded.
COMMAND = """
import sys
sys.argv = ["radtower", *sys.argv[1:]]
from radtower_command import main
try:
    main()
finally:
    print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def _parsed_setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_the_entry_point_is_the_module_outside_the_package():
    scripts = _parsed_setup()["options.entry_points"]["console_scripts"].split("\n")
    assert "radtower = radtower_command:main" in scripts
    assert _parsed_setup()["options"]["py_modules"] == "radtower_command"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["zero-shot", "--help"]])
def test_help_loads_nothing_that_takes_seconds(arguments):
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "100"},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: radtower" in done.stdout
    loaded = set(done.stderr.partition("LOADED ")[2].split())
    assert "typer" in loaded
    assert loaded & set(HEAVY) == set()


@pytest.mark.parametrize("error", [ImportError, OSError, TypeError, ValueError, KeyError])
def test_what_a_user_can_fix_is_one_line(radtower, monkeypatch, error):
    def fail(_):
        raise error("path must exist, got 'x'. Check it.")

    monkeypatch.setattr(data, "_print_installation", fail)
    done = radtower("doctor")
    assert done.code == 2
    assert done.err == "error: path must exist, got 'x'. Check it.\n"


def test_a_refused_configuration_is_one_line_too(radtower, monkeypatch):
    def fail(_):
        raise StrictDataclassClassValidationError("validate_stages", ValueError("layers"))

    monkeypatch.setattr(data, "_print_installation", fail)
    assert radtower("doctor").code == 2


def test_a_bug_keeps_its_traceback(radtower, monkeypatch):
    def fail(_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(data, "_print_installation", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        radtower("doctor")


def test_the_version_is_an_option(radtower):
    done = radtower("--version")
    assert (done.code, done.out, done.err) == (0, f"radtower {__version__}\n", "")
    assert __version__ == metadata.version("radtower")


def test_an_unknown_command_is_unusable_input(radtower):
    assert radtower("docter").code == 2


def test_the_package_ships_its_data_files():
    package_data = _parsed_setup()["options.package_data"]
    assert package_data["radtower.hub_cards"] == "templates/*.md"
    assert package_data["radtower.labeling"] == "findings/*.yaml, findings/mappings/*.yaml"
    templates = {item.name for item in (resources.files("radtower.hub_cards") / "templates").iterdir()}
    assert templates == {
        "adapter.md",
        "ct3d_vision.md",
        "label_card.md",
        "llm_biencoder.md",
        "medclip.md",
        "medclip_images.md",
        "metric_card.md",
        "model_tail.md",
    }
    findings = (resources.files("radtower.labeling") / "findings" / "ct_rate_18.yaml").read_text()
    assert "name: ct_rate_18" in findings
    mappings = resources.files("radtower.labeling").joinpath("findings", "mappings")
    assert mappings.joinpath("ct_rate_18_to_ct_rate_16.yaml").is_file()
    assert (resources.files("radtower") / "py.typed").is_file()
