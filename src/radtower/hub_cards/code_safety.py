"""Refuse exported code that does more than compute: it runs on the machine of whoever trusts our repository.

The check reads the code and does not run it. It is a floor under our own work and finds what slipped in; it
is no sandbox for code of strangers, which can hide from it.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

# Of the standard library: nothing that starts processes, reaches a network, or unpickles.
SAFE_STDLIB = frozenset(
    {
        *("__future__", "abc", "collections", "contextlib", "copy", "dataclasses", "difflib", "enum"),
        *("functools", "itertools", "json", "logging", "math", "numbers", "operator", "os", "pathlib", "re"),
        *("statistics", "string", "textwrap", "threading", "types", "typing", "warnings", "weakref"),
    }
)
# Of these, only what is named here.
_ONLY = {
    "os": frozenset({"PathLike", "fspath", "path", "register_at_fork"}),
    "huggingface_hub": frozenset({"dataclasses", "load_state_dict_from_file", "snapshot_download"}),
}
_NEVER = frozenset(
    {
        *("torch.load", "torch.save", "torch.hub", "torch.jit.load", "torch.package", "torch.serialization"),
        *("torch.ops.load_library", "torch.classes.load_library", "torch.utils.cpp_extension"),
        *("torch.distributed.rpc", "torch.multiprocessing", "transformers.dynamic_module_utils"),
        *("numpy.load", "numpy.save", "numpy.fromfile", "numpy.memmap"),
    }
)
_NAMES = frozenset({"eval", "exec", "compile", "__import__", "__builtins__", "breakpoint", "globals"})
_ATTRIBUTES = frozenset(
    {
        *("write_text", "write_bytes", "unlink", "rmdir", "rmtree", "mkdir", "makedirs", "symlink_to"),
        *("hardlink_to", "chmod", "touch", "tofile", "push_to_hub", "load_library"),
        *("__subclasses__", "__globals__", "__builtins__", "__code__", "__loader__"),
    }
)
# Reached through another module that has imported them.
_MODULES = frozenset(
    {
        *("builtins", "ctypes", "importlib", "marshal", "os", "pickle", "runpy", "shutil", "socket"),
        *("subprocess", "sys"),
    }
)
_READ_MODES = frozenset({"r", "rb", "rt"})


def refuse_unsafe_code(files: Iterable[Path], packages: frozenset[str]) -> None:
    """Read Python files that are to leave the machine, and refuse what none of ours needs.

    Args:
        files: Python files of one flat folder.
        packages: What they may import, besides each other and harmless modules of the standard library.

    Raises:
        ValueError: If a file imports anything else, runs text as code, starts a process, writes a file,
            reads a pickle, trusts remote code, or is no Python. The message names file and line.
    """
    allowed = (packages - sys.stdlib_module_names) | SAFE_STDLIB
    for path in sorted(files):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:
            raise ValueError(
                f"exported code must be Python, got {path.name}:{error.lineno}, which is none. Mend it."
            ) from None
        for line, found in sorted(_findings(tree, path.parent, allowed)):
            raise ValueError(
                f"exported code must only compute, got {path.name}:{line}, which has {found}. Move that to a "
                "module that is not exported."
            )


def _findings(tree: ast.Module, folder: Path, allowed: frozenset[str]) -> Iterator[tuple[int, str]]:
    known: dict[str, str] = {}  # name in this file -> what was imported under it
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name, imported in _imported(node):
                known[name] = imported
                if reason := _refused_import(node, imported, folder, allowed):
                    yield node.lineno, reason
    opened = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_read_only(node)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in opened:
            reason = _refused_name(node) or _refused_dotted(_dotted(node, known))
        elif isinstance(node, ast.Call):
            reason = _refused_call(node, known)
        else:
            continue
        if reason:
            yield node.lineno, reason


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """Name in the file, and the dotted name of what it is; relative ones begin with a dot."""
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            yield alias.asname or alias.name, f"{'.' * node.level}{node.module or ''}.{alias.name}"
        elif alias.asname:
            yield alias.asname, alias.name
        else:
            yield alias.name.partition(".")[0], alias.name


def _refused_import(
    node: ast.Import | ast.ImportFrom, imported: str, folder: Path, allowed: frozenset[str]
) -> str | None:
    if imported.startswith("."):
        is_here = isinstance(node, ast.ImportFrom) and (folder / f"{node.module}.py").is_file()
        is_flat = isinstance(node, ast.ImportFrom) and node.level == 1
        return None if is_flat and is_here else f"an import of {imported}, which is not beside it"
    package = imported.partition(".")[0]
    return _refused_dotted(imported) if package in allowed else f"an import of {package}"


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    """``torch.nn.Linear`` for ``nn.Linear`` where nn is torch's; empty for what was not imported."""
    if isinstance(node, ast.Name):
        name = known.get(node.id, "")
        # ``import torch.nn`` binds torch.
        return name.partition(".")[0] if name.startswith(f"{node.id}.") else name
    if isinstance(node, ast.Attribute):
        start = _dotted(node.value, known)
        return f"{start}.{node.attr}" if start else ""
    return ""


def _refused_dotted(name: str) -> str | None:
    package, _, rest = name.partition(".")
    if not _MODULES.isdisjoint(rest.split(".")):
        return name
    if rest and package in _ONLY and rest.partition(".")[0] not in _ONLY[package]:
        return name
    return name if any(f"{name}.".startswith(f"{never}.") for never in _NEVER) else None


def _refused_name(node: ast.Name | ast.Attribute) -> str | None:
    if isinstance(node, ast.Name):
        is_bad = isinstance(node.ctx, ast.Load) and (node.id in _NAMES or node.id == "open")
        return node.id if is_bad else None
    return node.attr if node.attr in _ATTRIBUTES | _MODULES or node.attr == "open" else None


def _is_read_only(node: ast.Call) -> bool:
    """Whether this is ``open`` or ``path.open`` for reading, with a mode that can be read off."""
    if isinstance(node.func, ast.Name) and node.func.id == "open":
        position = 1
    elif isinstance(node.func, ast.Attribute) and node.func.attr == "open":
        position = 0
    else:
        return False
    modes = [*node.args[position : position + 1], *(k.value for k in node.keywords if k.arg == "mode")]
    is_plain = not any(k.arg is None for k in node.keywords)
    return is_plain and all(isinstance(mode, ast.Constant) and mode.value in _READ_MODES for mode in modes)


def _refused_call(node: ast.Call, known: dict[str, str]) -> str | None:
    for keyword in node.keywords:
        is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        if keyword.arg == "trust_remote_code" and is_true:
            return "trust_remote_code=True"
    if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) > 1:
        name = node.args[1]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            read = ast.Attribute(node.args[0], name.value, ast.Load())
            return _refused_name(read) or _refused_dotted(_dotted(read, known))
    return None
