"""What only the publisher knows about the data of a run, and the card of its model says."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StatedData:
    """Name and license of the training data; they change nothing in the training.

    Args:
        data_name: Such as ``CT-RATE``; it is published. None states none.
        data_license: Such as ``CC-BY-NC-SA-4.0``; it is published. None states none.
    """

    data_name: str | None = None
    data_license: str | None = None
