import datetime
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from radtower.data.file_texts import UnsearchableError, plain_text, texts_of_file


@pytest.fixture
def texts(tmp_path):
    """Write a file and return its texts with their places."""

    def read(name, content):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return list(texts_of_file(path, name))

    return read


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("See https://huggingface.co/a/b/, now.", "See  now."),
        ("See https://huggingface.co/a?mrn=12345 now.", "See ?mrn=12345 now."),
        ("See [it](https://doi.org/10.1/x), now.", "See [it](), now."),
        ("See arxiv.org/abs/2101.00001 now.", "See  now."),
        ("See https://nothuggingface.co/1 now.", "See https://nothuggingface.co/1 now."),
        ("mail a@nih.gov now.", "mail a@nih.gov now."),
        ("See https://pacs.example.org/1 now.", "See https://pacs.example.org/1 now."),
        ("See https://github.com.example.org/1 now.", "See https://github.com.example.org/1 now."),
        (f"of {'0a' * 32} and {'1b' * 20} and {'2c' * 16}", "of  and  and "),
        ("of fingerprint 0123456789ab and commit 1234567, 1234567", "of fingerprint  and commit , 1234567"),
        (f"of {'0a' * 15} and {'1' * 40}", f"of {'0a' * 15} and {'1' * 40}"),
    ],
)
def test_public_addresses_and_digests_are_left_out(text, rest):
    assert plain_text(text) == rest


def test_keys_and_texts_of_json_and_yaml_are_found(texts):
    content = {"a_b": ["one_two", {"c": "three four_five"}], "n": 1234567, "b": True, "z": None}
    found = ["a b", "one two", "c", "three four_five", "n", "b", "z"]
    assert texts("a.json", json.dumps(content)) == [("a.json", text) for text in found]
    assert texts("a.yaml", json.dumps(content)) == [("a.yaml", text) for text in found]
    assert texts("a.yml", "day: 2020-01-31") == [("a.yml", "day"), ("a.yml", "2020-01-31")]
    lines = texts("a.jsonl", '{"a": "x"}\n\n["y", "z"]\n')
    assert lines[:2] == [("a.jsonl line 1", "a"), ("a.jsonl line 1", "x")]
    assert lines[-2:] == [("a.jsonl line 3", "y"), ("a.jsonl line 3", "z")]


def test_numbers_count_where_their_key_says_whose_they_are(texts):
    content = {"patient_mrn": 12345, "PatientID": [7], "is_patient": True, "size": 12345, "phone": 5.5}
    found = [text for _, text in texts("a.json", json.dumps(content)) if text.startswith("record")]
    assert found == ["record number 12345", "record number 7", "record number 5.5"]
    rows = texts("a.csv", "mrn,size,birth\n12,13,\n14 a,15,16\n")
    assert [text for _, text in rows if text.startswith("record")] == ["record number 12", "record number 16"]


def test_the_chat_template_and_the_vocabulary_are_no_texts(texts):
    content = {"chat_template": "Today is 26 Jul 2024", "added_tokens_decoder": {"1280001": "x"}, "k": "v"}
    assert texts("tokenizer_config.json", json.dumps(content)) == [
        ("tokenizer_config.json", "k"),
        ("tokenizer_config.json", "v"),
    ]


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.py"])
def test_what_cannot_be_parsed_is_taken_as_it_is(texts, name):
    assert texts(name, "x: [Dr. Miller") == [(name, "x: [Dr. Miller")]


def test_yaml_that_would_run_code_is_not_run(texts, tmp_path):
    line = f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']"
    assert texts("a.yaml", line) == [("a.yaml", line)]
    assert not (tmp_path / "made").exists()


def test_a_card_is_front_matter_and_prose_without_citations(texts):
    card = "---\nname: Miller\n---\n# Title\n```bibtex\n@a{author = {Dr. Lee}}\n```\nEnd\n```python\nx\n```\n"
    assert texts("README.md", card) == [
        ("README.md", "name"),
        ("README.md", "Miller"),
        ("README.md", "\n# Title\n\nEnd\n```python\nx\n```\n"),
    ]
    assert texts("a.txt", "No front\n---\n") == [("a.txt", "No front\n---\n")]


def test_comments_and_literals_of_code_are_found(texts):
    code = "'''Do it.\n\n    name: Of it.\n'''\nname: str = \"a\"  # Dr. Lee\n"
    assert texts("a.py", code) == [
        ("a.py", "Do it.\n\n    name Of it.\n"),
        ("a.py", "a"),
        ("a.py", "# Dr. Lee"),
    ]


def test_markup_and_drawing_are_left_out(texts):
    svg = "<svg x='1234567'><style>p{a:1234567}</style><desc>Dr. Lee</desc></svg>"
    assert [text.split() for _, text in texts("a.svg", svg)] == [["Dr.", "Lee"]]


def test_cells_of_a_table_have_the_place_of_their_row(texts):
    assert texts("a.csv", 'id,note\ns_1,"one, two"\n') == [
        ("a.csv row 0", "id"),
        ("a.csv row 0", "note"),
        ("a.csv row 1", "s 1"),
        ("a.csv row 1", "one, two"),
    ]
    assert texts("a.tsv", "a\tb") == [("a.tsv row 0", "a"), ("a.tsv row 0", "b")]


def test_parquet_gives_nested_texts_names_and_metadata(tmp_path):
    frame = pd.DataFrame(
        {
            "id": [f"s_{row}" for row in range(2000)],
            "quotes": [["a b"] if row == 1500 else None for row in range(2000)],
            "mrn": np.arange(2000),
            "size": np.arange(2000),
            "day": [datetime.date(2020, 1, 31)] * 2000,
        }
    )
    table = pa.Table.from_pandas(frame).replace_schema_metadata({"note": '{"by": "Dr. Lee"}'})
    pq.write_table(table, tmp_path / "a.parquet")
    texts = list(texts_of_file(tmp_path / "a.parquet", "a.parquet"))
    assert texts[:2] == [("a.parquet metadata", "by"), ("a.parquet metadata", "Dr. Lee")]
    assert ("a.parquet columns", "day") in texts
    assert [text for text in texts if text[1] == "2000-01-01"] == [("a.parquet columns", "2000-01-01")]
    assert ("a.parquet row 1501", "a b") in texts
    assert ("a.parquet row 2000", "s 1999") in texts
    assert ("a.parquet row 2000", "record number 1999") in texts
    assert len(texts) == 2 + 5 + 1 + 2000 + 1 + 2000


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary(3),
        pa.list_(pa.binary()),
        pa.struct([("path", pa.string()), ("bytes", pa.binary())]),
        pa.map_(pa.string(), pa.string()),
    ],
)
def test_columns_of_bytes_cannot_be_searched(tmp_path, kind):
    pq.write_table(pa.table({"id": ["a"], "x": pa.nulls(1, kind)}), tmp_path / "a.parquet")
    with pytest.raises(UnsearchableError, match=r"data/a must have columns of text and numbers, got bytes"):
        list(texts_of_file(tmp_path / "a.parquet", "data/a"))


def test_the_header_of_safetensors_is_found(tmp_path):
    save_file({"x": np.zeros(3)}, tmp_path / "a.safetensors", metadata={"note": "Dr. Lee"})
    assert list(texts_of_file(tmp_path / "a.safetensors", "a")) == [
        ("a metadata", "note"),
        ("a metadata", "Dr. Lee"),
    ]


@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
def test_a_damaged_file_is_refused(tmp_path, kind):
    (tmp_path / f"a.{kind}").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=rf"file 1 must be a {kind} file, got a damaged or other one"):
        list(texts_of_file(tmp_path / f"a.{kind}", "file 1"))
