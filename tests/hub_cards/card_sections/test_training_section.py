"""What a card says of the data: what was recorded, and "not recorded" for the rest; never a path."""

from dataclasses import asdict

import pytest

from radtower.hub_cards.card_sections.training_section import training_table
from radtower.training.runs import ClipRun, LabelerRun, TextMNTPRun, VisionRun

VISION = {"manifest": "/secret/m.csv", "cache": "/secret/c"}


def _table(record):
    lines = training_table(record).splitlines()
    assert lines[:2] == ["| | |", "|---|---|"]
    return dict(line.strip("| ").split(" | ", 1) for line in lines[2:])


def test_what_was_recorded_is_stated():
    run = VisionRun(**VISION, labels="/secret/l", data_name="CT-RATE | v2", data_license="CC-BY-NC-SA-4.0")
    record = {"run": asdict(run), "data": "0123456789abcdef" * 4, "num_train_samples": 47149}
    assert _table(record) == {
        "data": r"CT-RATE \| v2",
        "license of the data": "CC-BY-NC-SA-4.0",
        "samples trained on": "47149",
        "fingerprint of the data": "`0123456789abcdef`",
        "label source": (
            "silver: a label table, which a machine read from the reports. The card of the labels has its "
            "agreement"
        ),
    }
    assert "secret" not in training_table(record)


def test_what_was_not_recorded_is_not_invented():
    table = _table({"data": "/secret/hash"})
    assert table.pop("data") == table.pop("license of the data") == "not stated by the publisher"
    assert set(table.values()) == {"not recorded"}


@pytest.mark.parametrize(
    ("run", "source"),
    [
        (LabelerRun(llm="x", manifest="m", gold="g"), "a table of reference labels"),
        (LabelerRun(llm="x", reports="r"), "columns of the table of studies; who made them is not recorded"),
        (VisionRun(**VISION, findings="f"), "columns of the table of studies; who made them is not recorded"),
        (ClipRun(**VISION, vision="v", text="t"), "none: the training used none"),
        (TextMNTPRun(reports="r", llm="x"), "none: the training used none"),
    ],
)
def test_the_source_of_labels_is_that_of_the_run(run, source):
    assert _table({"run": asdict(run)})["label source"] == source
