"""What was left out of a stream, and how much of it: told while it goes, and at the end."""

import logging
from collections.abc import Callable

from accelerate.utils import gather_object

from radtower.data.streams.study_stream import StreamedStudy

MAX_NAMED = 20  # rows of a kind and process; the others are counted

logger = logging.getLogger(__name__)


class StreamTally:
    """Counts the rows of this process; the first of each kind that something is wrong with are named at once.

    Args:
        on_note: Takes each sentence.
    """

    def __init__(self, on_note: Callable[[str], None] = logger.warning) -> None:
        self.on_note = on_note
        self.num_read = self.num_left_out = self.num_remarked = self.num_crowded_out = 0
        self.first_reason = ""
        self.left_out: dict[str, None] = {}
        self.remarked: dict[str, None] = {}

    def add(self, study: StreamedStudy) -> None:
        """Count one row; the same row counts again in each pass and is named once."""
        self.num_read += 1
        if study.reason is None:
            return
        named = f"{study.named_by} {study.name}"
        if study.sample is None:
            self.num_left_out += 1
            self.first_reason = self.first_reason or study.reason
            self._note(self.left_out, named, f"left out: {named}: {study.reason}")
        else:
            self.num_remarked += 1
            self._note(self.remarked, named, f"{named}: {study.reason}")

    def _note(self, known: dict[str, None], named: str, sentence: str) -> None:
        if named not in known and len(known) < MAX_NAMED:
            known[named] = None
            self.on_note(sentence)

    def tell(self, *, is_main: bool = True) -> None:
        """Say how many rows of all processes had something wrong; every process must call it.

        Args:
            is_main: Whether this process says it.
        """
        counts = (self.num_read, self.num_left_out, self.num_remarked, self.num_crowded_out)
        gathered = gather_object([(counts, list(self.left_out), list(self.remarked))])
        if not is_main:
            return
        read, left_out, remarked, crowded = (
            sum(column) for column in zip(*(g[0] for g in gathered), strict=True)
        )
        for number, what, place in ((left_out, "were left out", 1), (remarked, "have no labels", 2)):
            if number:
                names = list(dict.fromkeys(name for found in gathered for name in found[place]))
                self.on_note(f"{number} of {read} rows read {what}, among them: {', '.join(names)}")
        if crowded:
            self.on_note(f"{crowded} of {read} rows read met their like too often, and were passed over")
