"""Parts of a ledger, for tasks that run at once: each has a file until the ledger takes it over."""

import uuid
from collections.abc import Iterator
from pathlib import Path

from radtower.labeling.answers.generation import Generation
from radtower.labeling.answers.ledger import PARTS, SUFFIX, Ledger, open_ledger

_PAGE = 1000


def split_ledger(
    ledger: Ledger, output: str | Path, generation: Generation, num_parts: int, *, should_retry_failed: bool
) -> None:
    """Give each part the reports to ask whose hash, as a number, has its number as the rest.

    Args:
        ledger: Open, with the reports registered and no parts.
        output: The label table.
        generation: What is to be answered.
        num_parts: Parts to make.
        should_retry_failed: As in ``Ledger.to_ask``.
    """
    folder = _parts_folder(output) / uuid.uuid4().hex[:12]
    folder.mkdir(parents=True)
    for number in range(num_parts):
        with open_ledger(folder / _name(number)) as part:
            part.use(generation)
            part.assign(
                (position, sha256)
                for position, sha256 in _all_to_ask(ledger, generation, should_retry_failed)
                if int(sha256, 16) % num_parts == number
            )


def part_output(output: str | Path, number: int) -> Path | None:
    """Return the path to open the ledger of a part by; None where the part was taken over already."""
    parts = list(_parts_folder(output).glob(f"*/{_name(number)}{SUFFIX}"))
    return parts[0].with_name(_name(number)) if parts else None


def _parts_folder(output: str | Path) -> Path:
    output = Path(output)
    return output.with_name(output.name + SUFFIX) / PARTS


def _name(number: int) -> str:
    return f"{number:05d}.parquet"


def _all_to_ask(
    ledger: Ledger, generation: Generation, should_retry_failed: bool
) -> Iterator[tuple[int, str]]:
    after = -1
    while page := ledger.to_ask(
        generation.hash, after=after, limit=_PAGE, should_retry_failed=should_retry_failed
    ):
        yield from page
        after = page[-1][0]
