"""Who is in a batch of a stream, who waits, and what is passed over."""

import threading

import datasets
import pytest
import torch
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from parquet_sets import png, write_set
from radtower.data.streams.hub_rows import HubRows, HubSource
from radtower.data.streams.study_stream import StreamedStudy, StudyStream
from radtower.processing.processing_medclip import MedCLIPProcessor
from radtower.training.clip.stream_batches import SharedBatch, StreamBatches
from radtower.training.clip.stream_tally import StreamTally


class Rows(StudyStream):
    """Rows of given keys, the same in each pass; a row of None is damaged."""

    def __init__(self, keys):
        self.keys = keys
        self.pass_number = 0

    def __iter__(self):
        for number, keys in enumerate(self.keys):
            if keys is None:
                yield StreamedStudy(f"{number:012x}", "study", None, "damaged")
            else:
                sample = {"row": torch.tensor(number), "pair_keys": torch.tensor(keys)}
                yield StreamedStudy(f"{number:012x}", "study", sample)


def _rows_of(samples):
    return [int(sample["row"]) for sample in samples]


def _batches(keys, size, notes=None):
    return StreamBatches(
        Rows(keys), size, _rows_of, tally=StreamTally((notes if notes is not None else []).append)
    )


def test_a_row_whose_like_is_in_the_batch_waits_for_the_next():
    keys = [(1, 0), (1, 0), (2, 7), (3, 7), (4, 0), (5, 0), (6, 0)]
    batches = _batches(keys, 2)
    # Row 1 has the report of row 0; row 3 is of the study of row 2.
    assert list(batches.one_pass(0)) == [[0, 2], [1, 3], [4, 5]]
    assert batches.tally.num_crowded_out == 0


def test_no_more_wait_than_fill_a_batch():
    keys = [(1, 0)] * 6 + [(2, 0), (3, 0), (4, 0)]
    notes: list[str] = []
    batches = _batches(keys, 2, notes)
    # Two of the copies wait, three are passed over.
    assert list(batches.one_pass(0)) == [[0, 6], [1, 7], [2, 8]]
    assert batches.tally.num_crowded_out == 3
    batches.tally.tell()
    assert notes == ["3 of 9 rows read met their like too often, and were passed over"]
    batches.tally.tell(is_main=False)
    assert len(notes) == 1


def test_keys_that_are_none_meet_and_a_pass_begins_with_nobody_waiting():
    keys = [(1, 0), (1, 0), (2, 0)]
    batches = _batches(keys, 2)
    assert list(batches.one_pass(0)) == [[0, 2]]
    assert list(batches.one_pass(1)) == [[0, 2]]
    stream = iter(batches)
    assert [next(stream) for _ in range(3)] == [[0, 2]] * 3


def test_damaged_rows_are_counted_and_named_once():
    notes: list[str] = []
    batches = _batches([(1, 0), None, (2, 0), None], 2, notes)
    stream = iter(batches)
    assert [next(stream), next(stream)] == [[0, 2], [0, 2]]
    assert notes == ["left out: study 000000000001: damaged", "left out: study 000000000003: damaged"]
    batches.tally.tell()
    assert notes[-1] == ("3 of 7 rows read were left out, among them: study 000000000001, study 000000000003")


def test_refuses_a_stream_without_a_batch():
    with pytest.raises(ValueError, match=r"at least one row must be readable, got 2 .*first says: damaged"):
        next(iter(_batches([None, None], 2)))
    with pytest.raises(ValueError, match=r"a batch of 3 different studies .* got 4 readable rows"):
        next(iter(_batches([(1, 0), (2, 0), (2, 0), None, (1, 0)], 3)))


def _in_lockstep(keys_of_processes, size):
    """All batches of several processes in one: each advances to its exchange, and gets the tables of all."""
    number = len(keys_of_processes)
    tables, barrier = [None] * number, threading.Barrier(number)
    found = [None] * number

    def run(process):
        def exchange(own):
            tables[process] = own
            barrier.wait()
            everybody = torch.stack(list(tables))
            barrier.wait()
            return everybody

        batches = StreamBatches(
            Rows(keys_of_processes[process]), size, _rows_of, exchange=exchange, process=process
        )
        found[process] = list(batches.one_pass(0))

    threads = [threading.Thread(target=run, args=(process,)) for process in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return found


def test_processes_do_not_meet_the_likes_of_each_other_and_end_together():
    first = [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0)]
    second = [(2, 0), (1, 0), (9, 0), (8, 0), (3, 0), (7, 0), (10, 0), (11, 0)]
    found = _in_lockstep([first, second], 2)
    # Rows come in turn: 1 of the first, 2 of the second; then 2 and 1 have their likes, and 3 and 9 follow.
    assert found == [[[0, 2], [1, 3], [4, 5]]] * 2
    for batch in zip(*found, strict=True):
        reports = [keys[row][0] for keys, rows in zip((first, second), batch, strict=True) for row in rows]
        assert len(set(reports)) == 4


def test_a_process_that_has_enough_offers_nothing_more():
    shared = SharedBatch(2, 1)
    offers = torch.tensor([[[1, 5, 0]], [[1, 5, 0]]])
    assert shared.can_go_on(offers)
    assert shared.add(offers) == [[True], [False]]
    assert not shared.is_full
    assert not shared.can_go_on(torch.zeros(2, 1, 3, dtype=torch.int64))
    assert shared.add(torch.tensor([[[0, 0, 0]], [[1, 6, 0]]])) == [[], [True]]
    assert shared.is_full


@pytest.fixture
def image_stream(tmp_path, tiny_tokenizer):
    """Forty images of their own gray level in four files."""
    write_set(tmp_path, [png(n) for n in range(40)], [f"report {n}" for n in range(40)], num_files=4)
    processor = MedCLIPProcessor(
        ViTImageProcessorPil(size={"height": 4, "width": 4}, do_normalize=False), tiny_tokenizer
    )

    def make(num_readers: int) -> StudyStream:
        source = HubSource(
            dataset=str(tmp_path), image_column="image", report_column="report", shuffle_buffer=4
        )
        return StudyStream(HubRows(source, 0, num_readers), processor, lambda _report: ({}, None))

    return make


def _levels(samples):
    return [round(float(sample["pixel_values"].mean()) * 255) for sample in samples]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_read_every_row_once(image_stream, num_workers, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)
    batches = StreamBatches(image_stream(max(1, num_workers)), 4, _levels, num_workers=num_workers)
    found = list(batches.one_pass(1))
    assert [len(batch) for batch in found] == [4] * 10
    assert sorted(level for batch in found for level in batch) == list(range(40))
    assert list(batches.one_pass(1)) == found
    assert list(batches.one_pass(2)) != found


def test_a_long_stream_is_not_held_in_memory(image_stream, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)
    alive: set[int] = set()
    most = 0
    stream = image_stream(1)
    read = stream._pixel_values

    class Pixels(torch.Tensor):
        def __del__(self):
            alive.discard(id(self))

    def counted(image):
        nonlocal most
        pixels = read(image).as_subclass(Pixels)
        alive.add(id(pixels))
        most = max(most, len(alive))
        return pixels

    monkeypatch.setattr(stream, "_pixel_values", counted)
    batches = StreamBatches(stream, 3, len)
    number = sum(size for _, size in zip(range(66), batches, strict=False))
    assert number == 198
    assert 3 <= most <= 12  # of 200: this batch, the last one, and what waits
