"""A pairs table of two sources over the words of the tiny tokenizer."""

from pathlib import Path

import pandas as pd
import pytest

from radtower.data.reports.pairs import write_pairs

SPLITS = ["train"] * 6 + ["validation"] * 3
WORDS = ["nodule", "effusion", "small nodule", "small effusion", "nodule and effusion", "There is"]


def _rows(source: str, start: int) -> list[dict[str, object]]:
    rows = []
    for number, split in enumerate(SPLITS):
        finding = WORDS[number % len(WORDS)] + " is present" * (number // len(WORDS))
        rows.append(
            {
                "query": f"There is {finding}. Describe {source}.",
                "positive": f"{finding} present",
                "negatives": [f"no {finding}", f"no {finding} present"],
                "negative_kinds": ["negation", "negation"],
                "source": source,
                "instruction": None,
                "label_key": "effusion" if "effusion" in finding else None,
                "study_id": f"study-{start + number}",
                "split": split,
            }
        )
    return rows


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training pairs and six of validation, of two sources, with hard negatives. Read-only."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    write_pairs(pd.DataFrame(_rows("chest", 0) + _rows("abdomen", 100)), path)
    return path
