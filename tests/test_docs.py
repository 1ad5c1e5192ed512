"""What the documents name must exist: a map that lies is worse than no map."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PATH = re.compile(r"`((?:src|tests|recipes|docs|benchmarks|requirements|\.ci|\.github)/[\w./*-]+)`")
NAMED_PATHS = [
    (document.name, name)
    for document in DOCUMENTS
    for name in PATH.findall(document.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("document", "name"), NAMED_PATHS)
def test_documents_name_only_paths_that_exist(document, name):
    assert list(ROOT.glob(name.rstrip("/"))), f"{document} names {name}, which does not exist"


def test_the_documents_name_paths_at_all():
    assert len(NAMED_PATHS) > 20
