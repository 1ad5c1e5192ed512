"""Which fields of a recipe go with a manifest, and which with a data set."""

from dataclasses import replace

import pytest

from radtower.data.streams.hub_rows import HubSource
from radtower.training.clip.clip_run import ClipRun

STREAM = ClipRun(dataset="owner/name", image_column="scan", report_column="text", vision="v", text="t")


def test_fields_say_what_is_read():
    assert STREAM.source == HubSource(
        dataset="owner/name", image_column="scan", report_column="text", split="train", shuffle_buffer=256
    )
    full = replace(
        STREAM,
        dataset_config="small",
        dataset_split="dev",
        dataset_revision="v1",
        study_column="study",
        shuffle_buffer=8,
    ).source
    assert (full.config, full.split, full.revision) == ("small", "dev", "v1")
    assert (full.study_column, full.shuffle_buffer) == ("study", 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"manifest": "m.csv"}, r"either manifest or dataset must be given, got 'm\.csv' and 'owner/name'"),
        ({"dataset": None}, r"either manifest or dataset must be given, got None and None"),
        ({"cache": "c"}, r"cache must be left out where a dataset is streamed, got \{'cache': 'c'\}"),
        ({"feature_cache": "f"}, r"feature_cache must be left out .* got \{'feature_cache': 'f'\}"),
        ({"has_balanced_labels": True, "labels": "l"}, r"has_balanced_labels must be left out"),
        ({"has_length_batches": True, "text_mode": "full"}, r"has_length_batches must be left out"),
        ({"image_column": None}, r"image_column must be given with a dataset, got 'owner/name' without"),
        ({"image_column": None, "report_column": None}, r"image_column and report_column must be given"),
        ({"shuffle_buffer": 0}, r"shuffle_buffer must be at least 1, got 0"),
        ({"should_augment": True}, r"should_augment must be false where there is no cache"),
    ],
)
def test_refuses_fields_that_do_not_go_with_a_stream(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(STREAM, **fields)


@pytest.mark.parametrize(
    "name",
    [
        "dataset_config",
        "dataset_split",
        "dataset_revision",
        "image_column",
        "report_column",
        "study_column",
        "processor",
    ],
)
def test_refuses_fields_of_a_stream_without_one(name):
    with pytest.raises(ValueError, match=rf"{name} must come with a dataset, got none"):
        ClipRun(manifest="m.csv", vision="v", text="t", **{name: "x"})
