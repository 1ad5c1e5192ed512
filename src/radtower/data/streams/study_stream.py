"""Rows of a data set -> training samples, one at a time; what cannot be read is said and left out.

Axes: C channels or windows, Z Y X voxels or Y X pixels, K keys.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from radtower.data.manifest import identifier_hash
from radtower.data.pair_keys import keys_of_study
from radtower.data.streams.hub_rows import HubRow, HubRows, with_bytes
from radtower.processing.image_io import read_image
from radtower.processing.processing_medclip import MedCLIPProcessor
from radtower.processing.report_text import normalize_report

NAME_DIGITS = 12  # hexadecimal, of a hash: enough to tell rows apart, and they fit into an int64

MakeInputs = Callable[[str], tuple[dict[str, torch.Tensor], str | None]]


class StreamedStudy(NamedTuple):
    """A row that was read, or the reason why it was not.

    ``name`` is twelve hex digits of a hash: of the study, where there is no id of the report, where there is
    no report of the image. ``named_by`` says which. ``sample`` is None for a row that is left out;
    ``reason`` says why, or what a sample lacks.
    """

    name: str
    named_by: Literal["study", "report", "image"]
    sample: dict[str, torch.Tensor] | None
    reason: str | None = None


class StudyStream(IterableDataset[StreamedStudy]):
    """Samples of this process's part of a data set, in the order of the pass; for a data loader.

    A sample has ``pixel_values`` ``(C, Z, Y, X)`` or ``(C, Y, X)``, ``pair_keys`` ``(K,)``, ``row`` (its name
    as a number), and what ``make_inputs`` gives. The workers of a loader read different rows.

    Args:
        rows: With a reader per worker of each process, or per process where there are no workers.
        processor: Of the dual tower; its image processor prepares volumes where ``rows`` are volumes.
        make_inputs: From a normalized report to what the sample has of it, and a remark on what it lacks.
        process: Which of the processes that train this is.

    Raises:
        TypeError: If the image processor prepares something else than the rows are.
    """

    def __init__(
        self, rows: HubRows, processor: MedCLIPProcessor, make_inputs: MakeInputs, process: int = 0
    ) -> None:
        if processor.reads_volumes != (rows.kind == "volume"):
            raise TypeError(
                f"the image processor must be one for {rows.kind}s, got "
                f"{type(processor.image_processor).__name__}. Take a tower for such images."
            )
        self.rows = rows
        self.processor = processor
        self.make_inputs = make_inputs
        self.process = process
        self.pass_number = 0

    def __iter__(self) -> Iterator[StreamedStudy]:
        worker: Any = get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for row in self.rows.read(self.pass_number, self.process * num_workers + number):
            yield self._study(row)

    def _study(self, row: HubRow) -> StreamedStudy:
        report = normalize_report(row.report)
        name = _name(row, report)
        if not report:
            return StreamedStudy(*name, None, "the report is empty")
        try:
            image = with_bytes(row.image)
        except FileNotFoundError:  # any other error is one of the network, and none of the row
            return StreamedStudy(*name, None, "the image is not there")
        try:
            pixels = self._pixel_values(image)
        except Exception as error:  # damaged files raise what their decoder likes
            return StreamedStudy(*name, None, f"{type(error).__name__}: {error}")
        inputs, remark = self.make_inputs(report)
        sample = {
            "pixel_values": pixels,
            "pair_keys": torch.tensor(keys_of_study(report, row.study_id)),
            "row": torch.tensor(int(name[0], 16)),
            **inputs,
        }
        return StreamedStudy(*name, sample, remark)

    def _pixel_values(self, image: Any) -> torch.Tensor:
        opened = image if self.rows.kind == "volume" else read_image(image)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on a usable scan, such as one without lungs to center on
            pixels: torch.Tensor = self.processor(images=[opened])["pixel_values"][0]
        return pixels


def name_of(row: int) -> str:
    """Return the name of a row by the number that its sample has."""
    return f"{row:0{NAME_DIGITS}x}"


def _name(row: HubRow, report: str) -> tuple[str, Literal["study", "report", "image"]]:
    if row.study_id is not None:
        return identifier_hash(row.study_id), "study"
    if report:
        return identifier_hash(report), "report"
    content = row.image.get("bytes")
    if content is None:
        content = str(row.image.get("path")).encode()
    return hashlib.sha256(content).hexdigest()[:NAME_DIGITS], "image"
