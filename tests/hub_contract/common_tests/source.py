"""transformers' own common tests, from the source distribution of the installed version.

Nothing of them is in this repository: they are downloaded from the package index into a cache folder. The
distribution lacks what they import from other folders; empty stand-ins take the place of those.
"""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
from pathlib import Path

# What the files import and the distribution lacks. Mixins for generation and for export: without tests of
# theirs. Values that every configuration must take: our own choice. Files of the Hub: no test may need any.
STAND_INS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        "    'return_dict': False, 'output_hidden_states': True, 'dtype': 'float16',\n"
        "    'chunk_size_feed_forward': 5, 'architectures': ['SomeModel'], 'id2label': {0: 'a', 1: 'b'},\n"
        "    'label2id': {'a': 0, 'b': 1}, 'problem_type': 'multi_label_classification',\n"
        "}\n"
    ),
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}
PACKAGES = ("parameterized",)  # what they import and we do not


def cache_folder() -> Path:
    """Where downloads are kept; ``XDG_CACHE_HOME`` moves it."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "radtower-tests" / f"transformers-{importlib.metadata.version('transformers')}"


def fetch_common_tests(folder: Path) -> list[Path]:
    """Download the tests and what they import.

    Args:
        folder: Is filled, unless it was before.

    Returns:
        What ``sys.path`` needs.

    Raises:
        subprocess.CalledProcessError: If the index does not give them.
        FileNotFoundError: If the distribution has no tests.
    """
    paths = [folder / "source", folder / "packages"]
    if (folder / "complete").exists():
        return paths
    _pip("install", "--no-deps", "--upgrade", "--target", str(paths[1]), *PACKAGES)
    version = importlib.metadata.version("transformers")
    source = ("--no-deps", "--no-binary", "transformers", f"transformers=={version}")
    _pip("download", "--dest", str(folder), *source)
    with tarfile.open(folder / f"transformers-{version}.tar.gz") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                content = archive.extractfile(member)
                assert content is not None  # no folder ends like that
                _write(paths[0] / "tests" / parts[2], content.read().decode())
    if not (paths[0] / "tests" / "test_modeling_common.py").exists():
        raise FileNotFoundError(f"the source distribution of transformers {version} has no tests.")
    for name, text in STAND_INS.items():
        if not (paths[0] / name).exists():
            _write(paths[0] / name, text)
    (folder / "complete").touch()
    return paths


def _pip(command: str, *arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *arguments], check=True, capture_output=True, text=True, timeout=300)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
