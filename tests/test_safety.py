"""What no file of the package may do, read off its source."""

import ast
import re
from functools import cache
from pathlib import Path

import radtower

PACKAGE = Path(radtower.__file__).parent
MODULES = [*sorted(PACKAGE.rglob("*.py")), PACKAGE.parent / "radtower_command.py"]
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor")
# Their callers pass it on, as the user said.
LOADED_AS_ASKED = {"modeling_loaded_from.py"}


@cache
def _nodes():
    """Path and node of everything; one test per rule, because a test per file and rule takes seconds."""
    return [(path, node) for path in MODULES for node in ast.walk(ast.parse(path.read_text("utf-8")))]


def _calls():
    return [(path, node) for path, node in _nodes() if isinstance(node, ast.Call)]


def _relative(path):
    return str(path.relative_to(PACKAGE.parent))


def test_nothing_is_unpickled_or_run_as_code():
    for path, call in _calls():
        name = ast.unparse(call.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"{_relative(path)}:{call.lineno}"
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), where
        assert not name.startswith(("pickle.", "marshal.", "shelve.", "joblib.", "dill.")), where
        assert not name.endswith(("torch.load", ".extractall", "read_pickle")), where
        assert keywords.get("allow_pickle", "False") == "False", where
        assert keywords.get("shell", "False") == "False", where


def test_what_a_linter_is_told_to_overlook_has_a_reason():
    for path in MODULES:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if "# noqa" in line:
                where = f"{_relative(path)}:{number}"
                assert re.search(r"# noqa: [A-Z]+\d+(, [A-Z]+\d+)* -- \w", line), where


def test_pictures_are_saved_without_what_the_program_would_write_into_them():
    for path, call in _calls():
        if ast.unparse(call.func).endswith(".savefig"):
            assert "metadata" in {keyword.arg for keyword in call.keywords}, (
                f"{_relative(path)}:{call.lineno}"
            )


def test_yaml_is_loaded_as_data():
    for path, call in _calls():
        name = ast.unparse(call.func)
        if name.startswith("yaml.") and "load" in name:
            loaders = [ast.unparse(k.value) for k in call.keywords if k.arg == "Loader"]
            # _TextLoader is a yaml.SafeLoader; see tests/data/test_file_texts.py.
            assert name == "yaml.safe_load" or loaders == ["_TextLoader"], f"{_relative(path)}:{call.lineno}"


def test_remote_code_is_trusted_by_nobody_but_the_user():
    for path, call in _calls():
        name = ast.unparse(call.func)
        where = f"{_relative(path)}:{call.lineno}"
        said = [ast.unparse(k.value) for k in call.keywords if k.arg == "trust_remote_code"]
        assert said in ([], ["False"], ["is_remote_code_trusted"]), where
        is_auto = name.endswith(".from_pretrained") and name.split(".")[-2].startswith(AUTO_CLASSES)
        # Left open, transformers asks at a terminal.
        assert said or not is_auto or path.name in LOADED_AS_ASKED, where
    for path, node in _nodes():
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                is_key = isinstance(key, ast.Constant) and key.value == "trust_remote_code"
                assert not (is_key and ast.unparse(value) == "True"), f"{_relative(path)}:{node.lineno}"
