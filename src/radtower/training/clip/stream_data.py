"""The training data of a run that streams a data set: rows, their reports as tokens, their labels.

Axes: T tokens.
"""

from collections.abc import Callable

import torch
from transformers import TrainingArguments

from radtower.data.streams.hub_rows import HubRows
from radtower.data.streams.stream_labels import StreamLabels
from radtower.data.streams.study_stream import StudyStream
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.processing_medclip import MedCLIPProcessor
from radtower.training.arguments import data_seed
from radtower.training.clip.clip_run import ClipRun
from radtower.training.clip.report_tokens import ReportPadding, tokenize_reports
from radtower.training.clip.stream_batches import StreamBatches
from radtower.training.clip.stream_tally import StreamTally


class ReportInputs:
    """What a sample has of its report: tokens, and labels if there are any.

    Args:
        processor: Of the dual tower.
        labels: None trains without a finding head.
    """

    def __init__(self, processor: MedCLIPProcessor, labels: StreamLabels | None) -> None:
        self.processor = processor
        self.labels = labels

    def __call__(self, report: str) -> tuple[dict[str, torch.Tensor], str | None]:
        """From a normalized report to ``input_ids`` ``(T,)`` and ``labels``, and a remark if those lack."""
        inputs = {"input_ids": tokenize_reports(self.processor, [report])[0]}
        if self.labels is None:
            return inputs, None
        targets, remark = self.labels(report)
        return {**inputs, "labels": targets}, remark


def open_rows(run: ClipRun, arguments: TrainingArguments) -> HubRows:
    """Open the data set of a run, with a reader for each worker of each process.

    Raises:
        FileNotFoundError: If there is no such data set.
        ValueError: If it has other columns, ``max_steps`` is not set, or loader workers are to be kept.
    """
    if arguments.max_steps <= 0:
        raise ValueError(
            f"max_steps must be set where a dataset is streamed, got {arguments.max_steps}: its length is "
            "not known. Take the number of studies over the batch size for one pass."
        )
    if arguments.dataloader_persistent_workers:
        raise ValueError(
            "dataloader_persistent_workers must be false where a dataset is streamed, got True: a pass "
            "starts its own. Leave it out."
        )
    num_readers = arguments.world_size * max(1, arguments.dataloader_num_workers)
    return HubRows(run.source, data_seed(arguments), num_readers)


def volume_processor(run: ClipRun, tower: CT3DVisionModel) -> CT3DImageProcessor:
    """Load the image processor for volumes that no cache has prepared.

    Raises:
        OSError: If there is none.
        ValueError: If it makes another number of channels than the tower reads.
    """
    processor = CT3DImageProcessor.from_pretrained(run.processor or str(run.vision))
    num_channels = tower.config.num_channels
    if len(processor.windows_hu) != num_channels:
        raise ValueError(
            f"the image processor must have a window for each of the {num_channels} channels of the tower, "
            f"got {len(processor.windows_hu)}. Name the processor the tower was trained with."
        )
    return processor


def stream_batches(
    rows: HubRows,
    processor: MedCLIPProcessor,
    labels: StreamLabels | None,
    arguments: TrainingArguments,
    on_note: Callable[[str], None],
) -> StreamBatches:
    """Return the batches of this process."""
    stream = StudyStream(rows, processor, ReportInputs(processor, labels), arguments.process_index)
    return StreamBatches(
        stream,
        arguments.train_batch_size,
        ReportPadding(processor.tokenizer),
        num_workers=arguments.dataloader_num_workers,
        tally=StreamTally(on_note),
        process=arguments.process_index,
    )
