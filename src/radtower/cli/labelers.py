"""The backends of ``radtower label``: flags, checked before anything is loaded, and how each is built."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from radtower.cli.encoder_options import EncoderOptions
from radtower.cli.endpoint_options import EndpointOptions
from radtower.cli.llm_options import LLMOptions

if TYPE_CHECKING:
    from radtower.labeling.answers.labeling_summary import LabelingPlan
    from radtower.labeling.findings import FindingsSet
    from radtower.labeling.labeler import LabelerBackend, LabelingRun


class Backend(StrEnum):
    """Who labels."""

    ENCODER = "encoder"
    ENDPOINT = "endpoint"
    LLM = "llm"


@dataclass(frozen=True)
class Labeler:
    """A backend that is ready.

    Args:
        backend: It.
        findings: What it answers for, which may be less than was asked for.
        on_plan: Called when it is known what is to be done, before the first report.
        instead: What is done in place of asking; None to ask. It returns what to print, or None when it has
            recorded answers and the table is to be written.
        notes: Gives sentences about what was done, after the last report; a number at the beginning is a
            count, which is added up over tasks.
    """

    backend: "LabelerBackend"
    findings: "FindingsSet"
    on_plan: "Callable[[LabelingPlan], None]" = lambda plan: None
    instead: "Callable[[LabelingRun], dict[str, Any] | None] | None" = None
    notes: "Callable[[], list[str]]" = list


LabelerOptions = EncoderOptions | EndpointOptions | LLMOptions
OPTIONS: dict[Backend, type[LabelerOptions]] = {
    Backend.ENCODER: EncoderOptions,
    Backend.ENDPOINT: EndpointOptions,
    Backend.LLM: LLMOptions,
}
