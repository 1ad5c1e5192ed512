"""Files of the OpenAI Batch API: requests to upload, and results that come back within a day at half price.

A line is named by generation and report, so that an answer to another prompt, model or report is refused.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ValidationError

from radtower.labeling.answers.batch_memory import BatchMemory
from radtower.labeling.chat.asker import Spent, make_labels, read_reply
from radtower.labeling.chat.completion import Completion
from radtower.labeling.endpoint import EndpointLabeler
from radtower.labeling.findings import FindingsSet
from radtower.labeling.parsing import LabelParseError
from radtower.labeling.report_labels import ReportLabels

# Limits of the service per file.
MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
_URL = "/v1/chat/completions"
_ID_LENGTH = 64  # services allow no longer name


def custom_id(generation: str, report_sha256: str) -> str:
    """Return the name of a request: generation, then as much of the report's hash as there is room for."""
    return f"{generation}-{report_sha256}"[:_ID_LENGTH]


@dataclass(frozen=True)
class WrittenBatch:
    """Files of requests, each within the limits of the service.

    ``num_in_earlier`` counts the reports that were left out, by the file that holds them already.
    """

    paths: tuple[Path, ...]
    num_requests: int
    num_in_earlier: dict[str, int] = field(default_factory=dict)


def write_batch_file(  # noqa: PLR0913 -- what, where to, and two limits
    reports: Iterable[tuple[str, str]],
    path: str | Path,
    labeler: EndpointLabeler,
    generation: str,
    *,
    memory: BatchMemory | None = None,
    should_write_again: bool = False,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
) -> WrittenBatch:
    """Write one request per report, as it would be asked online; a file is there when it is complete.

    Args:
        reports: Pairs of hash and normalized text.
        path: First file (``requests.jsonl``); what it cannot hold goes to ``requests.2.jsonl`` and so on.
        labeler: What is asked.
        generation: Names the requests; the same again when the results are read.
        memory: What is in earlier files, which is left out; what is written is added. None remembers nothing.
        should_write_again: Leave nothing out.
        max_requests: Lines per file at most.
        max_bytes: Bytes per file at most.

    Raises:
        FileExistsError: If a file is already there: its requests may have been paid for.
    """
    num_in_earlier: Counter[str] = Counter()
    if memory is not None:
        memory.begin()
    with _BatchWriter(Path(path), max_requests, max_bytes) as writer:
        for sha256, text in reports:
            earlier = None if memory is None or should_write_again else memory.file_of(sha256)
            if earlier is not None:
                num_in_earlier[earlier] += 1
                continue
            body = labeler.questions.ask(text, is_constrained=True)
            written = writer.add(_request_line(custom_id(generation, sha256), body))
            if memory is not None:
                memory.note(sha256, str(written.absolute()))
        if memory is not None:
            # Before anybody can upload them. A kill between the two leaves out reports, and says which file.
            memory.keep()
        writer.publish()
    return WrittenBatch(tuple(writer.paths), writer.num_requests, dict(num_in_earlier))


class _BatchWriter:
    """Lines, spread over files that have their names only when all are complete."""

    def __init__(self, first: Path, max_requests: int, max_bytes: int) -> None:
        self.paths: list[Path] = []
        self.num_requests = 0
        self._first = first
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._num_lines = self._num_bytes = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "_BatchWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        for path in self.paths:
            _partial(path).unlink(missing_ok=True)

    def add(self, line: bytes) -> Path:
        """Write a line; returns the file that will hold it."""
        if self._num_lines == self._max_requests or self._num_bytes + len(line) > self._max_bytes:
            self._close()
        if self._file is None:
            self.paths.append(_numbered(self._first, len(self.paths) + 1))
            self._file = _create(self.paths[-1])
            self._num_lines = self._num_bytes = 0
        self._file.write(line)
        self._num_lines, self._num_bytes = self._num_lines + 1, self._num_bytes + len(line)
        self.num_requests += 1
        return self.paths[-1]

    def publish(self) -> None:
        """Give the files their names."""
        self._close()
        for path in self.paths:
            _partial(path).replace(path)

    def _close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


class BatchResults:
    """Result files of the service, in any order of lines; the error file may be one of them.

    Only the place of each line is held in memory.

    Args:
        paths: Files as downloaded.
        generation: As the requests were named.

    Raises:
        ValueError: If a line is no result, or a request has two.
    """

    def __init__(self, paths: Sequence[str | Path], generation: str) -> None:
        self._generation = generation
        self._places: dict[str, tuple[Path, int]] = {}
        for path in map(Path, paths):
            with path.open("rb") as file:
                start = 0
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        self._add(_read_line(line, path, number).custom_id, path, start)
                    start += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def check_reports(self, report_sha256s: Iterable[str]) -> None:
        """Refuse results of anything else than these reports in this generation.

        Raises:
            ValueError: If there is one.
        """
        unknown = set(self._places)
        for sha256 in report_sha256s:
            unknown.discard(custom_id(self._generation, sha256))
        if unknown:
            raise ValueError(
                f"results must be of these reports and this generation ({self._generation}), got "
                f"{len(unknown)} of {len(self)} that are not, first {min(unknown)}. Give the reports, model, "
                "findings and flags that the requests were written with."
            )

    def source(self, report_sha256: str) -> str:
        """Return the name of the line about a report: the same in every copy of the file.

        Raises:
            KeyError: If there is none.
        """
        line = self._line(*self._places[custom_id(self._generation, report_sha256)])
        return f"batch:{hashlib.sha256(line.strip()).hexdigest()}"

    def labels(
        self, reports: Iterable[tuple[str, str]], labeler: EndpointLabeler
    ) -> Iterator[tuple[str, ReportLabels]]:
        """Yield hash and labels of those of ``reports`` (hash and normalized text) that have a result.

        What failed has a reason that begins with ``batch:``: it was not repaired, so the next run asks again.
        """
        for sha256, text in reports:
            place = self._places.get(custom_id(self._generation, sha256))
            if place is not None:
                yield sha256, _labels_of(_Line.model_validate_json(self._line(*place)), text, labeler)

    def _add(self, name: str, path: Path, start: int) -> None:
        if name in self._places:
            raise ValueError(f"a request must have one result, got two for {name}. Give each file once.")
        self._places[name] = (path, start)

    def _line(self, path: Path, start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.readline()


class _Response(BaseModel):
    status_code: int
    body: Completion | dict | None = None


class _Error(BaseModel):
    code: str | None = None


class _Line(BaseModel):
    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


def _labels_of(line: _Line, report: str, labeler: EndpointLabeler) -> ReportLabels:
    keys = labeler.findings.keys
    if line.response is None:
        code = line.error.code if line.error is not None else None
        return ReportLabels.failed(keys, f"batch:{code if code and code.isidentifier() else 'error'}")
    if line.response.status_code != 200:
        return ReportLabels.failed(keys, f"batch:http_{line.response.status_code}")
    completion = line.response.body
    if not isinstance(completion, Completion):
        return ReportLabels.failed(keys, "batch:not_a_completion")
    spent = Spent(cost_usd=_cost_usd(completion, labeler))
    spent.add_tokens(completion)
    return _read_labels(completion, report, labeler.findings, spent)


def _read_labels(completion: Completion, report: str, findings: FindingsSet, spent: Spent) -> ReportLabels:
    try:
        return make_labels(read_reply(completion, report, findings), completion, spent)
    except LabelParseError as error:
        return ReportLabels.failed(findings.keys, f"batch:{error.reason}", **vars(spent))


def _cost_usd(completion: Completion, labeler: EndpointLabeler) -> float | None:
    price, usage = labeler.price, completion.usage
    if price is None or usage is None:
        return None
    online = price.cost_usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    return online * price.batch_factor


def _request_line(name: str, body: bytes) -> bytes:
    head = {"custom_id": name, "method": "POST", "url": _URL}
    return json.dumps(head)[:-1].encode() + b', "body": ' + body + b"}\n"


def _read_line(line: bytes, path: Path, number: int) -> _Line:
    try:
        return _Line.model_validate_json(line)
    except ValidationError:
        raise ValueError(
            f"a result must be a JSON object with custom_id, response and error, got something else in line "
            f"{number} of {path.name}. Give the output or error file as the service wrote it."
        ) from None


def _numbered(path: Path, number: int) -> Path:
    return path if number == 1 else path.with_name(f"{path.stem}.{number}{path.suffix}")


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _create(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise FileExistsError(
            f"a batch file must be new, got {path}, which exists. Move it away if it was never uploaded."
        )
    return _partial(path).open("wb")
