"""The texts in files that are to leave the machine, each with the place it stands at, for the privacy check.

Texts are taken out of their format first: patterns for prose see names in ``name: x`` of YAML, and numbers
of patients in the digits of a hash.
"""

import ast
import csv
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Text = tuple[str, str]  # place, such as ``data/test.parquet row 7``, and what stands there
# No reports: the vocabulary of a public language model, and the template of its chats, which may name a day.
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
_VOCABULARY_KEYS = frozenset(("chat_template", "added_tokens_decoder"))
_PUBLIC_HOSTS = (
    r"(?:[\w-]+\.)*(?:huggingface\.co|hf\.co|arxiv\.org|doi\.org|github\.com|pypi\.org|pytorch\.org|w3\.org|"
    r"creativecommons\.org|apache\.org|python\.org|nih\.gov|teem\.sourceforge\.net|spdx\.org|nlp\.stanford\.edu)"
)
_PUBLIC_ADDRESS = re.compile(
    rf"(?<![\w.@-])(?:https?://)?{_PUBLIC_HOSTS}(?:/[^\s?#)>\]\"'`]*)?(?![\w.])", re.IGNORECASE
)
_DIGEST = re.compile(
    r"\b(?=\d*[a-f])(?:[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})\b"
    r"|(?<=\bfingerprint )[0-9a-f]{7,64}\b|(?<=\bcommit )[0-9a-f]{7,64}\b|(?<=\brevision )[0-9a-f]{7,64}\b"
)
_CITATION = re.compile(r"^```bibtex\n.*?^```", re.MULTILINE | re.DOTALL)
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.MULTILINE | re.DOTALL)
_MARKUP = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
# A number is text where its key says that it names a person or a stay.
_IDENTIFYING_KEY = re.compile(
    r"mrn|patient|accession|birth|phone|\bfax|ssn|social.?security|record.?(?:number|no|id)|insurance",
    re.IGNORECASE,
)


class UnsearchableError(ValueError):
    """A file may hold text where it cannot be found."""


def plain_text(text: str) -> str:
    """Return a text without what is public by its nature: addresses of public hosts, and digests."""
    return _DIGEST.sub("", _PUBLIC_ADDRESS.sub("", text))


def texts_of_file(path: Path, place: str) -> Iterator[Text]:
    """Yield the texts of a file.

    Args:
        path: Markdown, HTML, SVG, YAML, JSON, JSON lines, CSV, TSV, parquet, safetensors or Python file, or
            any other of UTF-8 text.
        place: How to name the file.

    Raises:
        UnicodeDecodeError: If it is no text.
        UnsearchableError: If a table has columns of bytes, such as pictures with what their headers say.
        ValueError: If it is damaged, or another file than its name says.
    """
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".safetensors"):
        yield from _parquet_texts(path, place) if suffix == ".parquet" else _safetensors_texts(path, place)
        return
    text = path.read_text(encoding="utf-8-sig")
    if suffix in (".csv", ".tsv"):
        yield from _table_texts(text, place, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".jsonl":
        for row, line in enumerate(text.splitlines(), start=1):
            yield from ((f"{place} line {row}", leaf) for leaf in _json_leaves(line))
    elif suffix == ".json":
        yield from ((place, leaf) for leaf in _json_leaves(text))
    elif suffix in (".yaml", ".yml"):
        yield from ((place, leaf) for leaf in _yaml_leaves(text))
    elif suffix == ".py":
        yield from ((place, prose) for prose in _code_texts(text))
    elif suffix in (".html", ".htm", ".svg", ".xml"):
        yield place, _MARKUP.sub(" ", text)
    else:
        yield from ((place, prose) for prose in _prose_texts(text))


def _prose_texts(text: str) -> Iterator[str]:
    front = _FRONT_MATTER.match(text)
    if front:
        yield from _yaml_leaves(front[1])
        text = text[front.end() :]
    # Authors of papers are named there, in a block that says so.
    yield _CITATION.sub("", text)


def _json_leaves(text: str) -> Iterator[str]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        yield text
        return
    yield from leaves(content)


def _yaml_leaves(text: str) -> Iterator[str]:
    try:
        content = yaml.load(text, Loader=_TextLoader)  # noqa: S506 -- a safe loader that leaves dates as text
    except yaml.YAMLError:
        yield text
        return
    yield from leaves(content)


class _TextLoader(yaml.SafeLoader):
    """Read dates as the text that they are."""


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def leaves(content: Any, key: str = "") -> Iterator[str]:
    """Yield keys and texts of nested lists and mappings, and numbers under a key that says whose they are."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name not in _VOCABULARY_KEYS:
                yield _words(str(name))
                yield from leaves(value, str(name))
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from leaves(value, key)
    elif isinstance(content, str):
        yield _words(content)
    elif isinstance(content, (int, float)) and not isinstance(content, bool) and _IDENTIFYING_KEY.search(key):
        yield f"record number {content}"


def _words(value: str) -> str:
    """An id as words: an underscore is a letter to a regular expression, so a date in an id has no edges."""
    return value if re.search(r"\s", value) else value.replace("_", " ")


def _code_texts(text: str) -> Iterator[str]:
    """Yield comments and literals; a ``name: type`` of the code itself is no name."""
    try:
        tree = ast.parse(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, tokenize.TokenError):
        yield text
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Docstrings explain arguments as ``name: what it is``.
            yield re.sub(r"(?im)^(\s*\w*name)s?:", r"\1", node.value)
    yield from (token.string for token in tokens if token.type == tokenize.COMMENT)


def _table_texts(text: str, place: str, delimiter: str) -> Iterator[Text]:
    names: list[str] = []
    for row, cells in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)):
        if not names:
            names = cells
        for column, cell in enumerate(cells):
            key = names[column] if column < len(names) else ""
            is_named = row > 0 and _IDENTIFYING_KEY.search(key) and cell.strip().isdigit()
            yield f"{place} row {row}", f"record number {cell}" if is_named else _words(cell)


def _parquet_texts(path: Path, place: str) -> Iterator[Text]:
    try:
        table = pq.ParquetFile(path)
    except pa.ArrowInvalid:
        raise ValueError(f"{place} must be a parquet file, got a damaged or other one.") from None
    for field in table.schema_arrow:
        if _has_bytes(field.type):
            raise UnsearchableError(
                f"{place} must have columns of text and numbers, got bytes. Save them as files, or "
                "leave them out."
            )
    for value in (table.schema_arrow.metadata or {}).values():
        yield from ((f"{place} metadata", leaf) for leaf in _json_leaves(value.decode("utf-8", "replace")))
    for field in table.schema_arrow:
        yield f"{place} columns", _words(field.name)
        if pa.types.is_temporal(field.type):
            yield f"{place} columns", "2000-01-01"  # whatever the days are, the column has them
    row = 1
    for batch in table.iter_batches(batch_size=1024):
        searched = [
            field.name
            for field in batch.schema
            if not (pa.types.is_temporal(field.type) or _is_plain_number(field.type, field.name))
        ]
        for cells in batch.select(searched).to_pylist():
            for name, value in cells.items():
                yield from ((f"{place} row {row}", leaf) for leaf in leaves(value, name))
            row += 1


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_bytes(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _has_bytes(kind.value_type)
    if pa.types.is_dictionary(kind):
        return _has_bytes(kind.value_type)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_map(kind)
        or pa.types.is_binary_view(kind)
    )


def _is_plain_number(kind: pa.DataType, name: str) -> bool:
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return bool(is_number) and not _IDENTIFYING_KEY.search(name)


def _safetensors_texts(path: Path, place: str) -> Iterator[Text]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, path.stat().st_size)))
        except ValueError:
            raise ValueError(f"{place} must be a safetensors file, got a damaged or other one.") from None
    for leaf in leaves(header.get("__metadata__", {})):
        yield f"{place} metadata", leaf
