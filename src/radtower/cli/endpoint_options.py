"""Flags of ``radtower label --backend endpoint``; what it does instead of asking: estimate, batch files."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radtower.cli.backend_flags import flag_name
from radtower.cli.extras import require

if TYPE_CHECKING:
    from radtower.cli.labelers import Labeler
    from radtower.labeling.answers.labeling_summary import LabelingPlan
    from radtower.labeling.endpoint import EndpointLabeler
    from radtower.labeling.findings import FindingsSet
    from radtower.labeling.labeler import LabelingRun

MAX_TOKENS = 4096  # of a reply, where no limit is given


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """Flags of ``--backend endpoint``; the defaults are those of the command.

    Args:
        model: Name, as the server knows it.
        base_url: Address of the server.
        api_key_env: Environment variable with the key.
        timeout: Limit of one request, in seconds.
        max_tokens: Limit of one reply; None is ``MAX_TOKENS``.
        concurrency: Requests in flight.
        requests_per_minute: Limit of the service.
        tokens_per_minute: Limit of the service.
        max_retries: Further tries of a request.
        max_retry_after: Longest wait that the server can ask for, in seconds.
        logprobs: Ask for log-probabilities, for scores.
        field: Further fields of the request, ``NAME=JSON``.
        prices: Price table.
        max_cost: Cap, in USD.
        dry_run: Only estimate.
        tokenizer: Folder of the model's tokenizer, for the estimate.
        batch_write: File of requests to write instead of asking.
        batch_again: Write what is in an earlier file, too.
        batch_read: Files of results to read instead of asking.

    Raises:
        ValueError: If the address or a price is missing, a field is no JSON, two things are to be done, or
            nothing is written that could be written again.
    """

    model: str
    base_url: str | None = None
    api_key_env: str | None = None
    timeout: float = 120.0
    max_tokens: int | None = None
    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_retries: int = 6
    max_retry_after: float = 300.0
    logprobs: bool = False
    field: tuple[str, ...] = ()
    prices: Path | None = None
    max_cost: float | None = None
    dry_run: bool = False
    tokenizer: str | None = None
    batch_write: Path | None = None
    batch_again: bool = False
    batch_read: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        instead = [name for name in ("dry_run", "batch_write", "batch_read") if getattr(self, name)]
        if len(instead) > 1:
            flags = ", ".join(map(flag_name, instead))
            raise ValueError(f"only one of these must be given, got {flags}. Run the command once for each.")
        if self.batch_again and self.batch_write is None:
            raise ValueError("--batch-again must come with --batch-write, got it alone. Name the new file.")
        if self.base_url is None and not instead:
            raise ValueError("--base-url must be given for an endpoint, got none. Add its address.")
        if self.max_cost is not None and self.prices is None:
            raise ValueError(
                f"--max-cost must come with --prices, got {self.max_cost} and no table. Write a YAML list "
                "with model, usd_per_million_in and usd_per_million_out."
            )
        if self.max_cost is not None and self.batch_write is not None:
            raise ValueError(
                f"--max-cost must not come with --batch-write, got {self.max_cost}. What is uploaded is out "
                "of its reach: look at the batch cost of --dry-run first."
            )
        self.request_fields()

    def request_fields(self) -> dict[str, Any]:
        """Return the further fields of a request."""
        content = {}
        for item in self.field:
            name, _, value = item.partition("=")
            try:
                content[name] = json.loads(value)
            except ValueError:
                raise ValueError(
                    f"--field must be NAME=JSON, got {item!r}. Quote text twice: --field 'effort=\"low\"'."
                ) from None
        return content

    def connect(self, findings: "FindingsSet") -> "EndpointLabeler":
        """Return the backend; nothing is sent yet."""
        require("label")
        from radtower.labeling.chat.budget import read_price
        from radtower.labeling.chat.retry import RetryPolicy
        from radtower.labeling.endpoint import EndpointLabeler

        return EndpointLabeler(
            # Without an address nothing is sent: see __post_init__.
            self.base_url or "http://localhost/v1",
            self.model,
            findings,
            api_key_env=self.api_key_env,
            timeout_s=self.timeout,
            max_tokens=MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            retry=RetryPolicy(max_retries=self.max_retries, retry_after_cap_s=self.max_retry_after),
            with_logprobs=self.logprobs,
            fields=self.request_fields(),
            price=None if self.prices is None else read_price(self.prices, self.model),
            max_cost_usd=self.max_cost,
        )

    def build(self, findings: "FindingsSet") -> "Labeler":
        """Make the client of the server, or what is done in its place."""
        from radtower.cli.labelers import Labeler

        endpoint = self.connect(findings)

        def on_plan(plan: "LabelingPlan") -> None:
            endpoint.spent_usd = plan.spent_usd

        return Labeler(endpoint, findings, on_plan, self._instead(endpoint), endpoint.notes)

    def _instead(
        self, endpoint: "EndpointLabeler"
    ) -> "Callable[[LabelingRun], dict[str, Any] | None] | None":
        if self.dry_run:
            return lambda run: self._estimate(run, endpoint)
        if self.batch_write is not None:
            path = self.batch_write
            return lambda run: _write_batch(run, endpoint, path, self.batch_again)
        if self.batch_read:
            return lambda run: _read_batch(run, endpoint, self.batch_read)
        return None

    def _estimate(self, run: "LabelingRun", endpoint: "EndpointLabeler") -> dict[str, Any]:
        from radtower.labeling.chat.estimate import count_roughly, estimate_run

        count_tokens = count_roughly if self.tokenizer is None else _counter(self.tokenizer)
        return asdict(estimate_run(endpoint, (text for _, text in run.pending()), count_tokens))


def _write_batch(
    run: "LabelingRun", endpoint: "EndpointLabeler", path: Path, should_write_again: bool
) -> dict[str, Any]:
    from radtower.labeling.chat.batch_file import write_batch_file

    written = write_batch_file(
        run.pending(),
        path,
        endpoint,
        run.plan.generation,
        memory=run.batches(),
        should_write_again=should_write_again,
    )
    document: dict[str, Any] = {
        "batch_files": [str(path) for path in written.paths],
        "num_requests": written.num_requests,
        "num_left_out": sum(written.num_in_earlier.values()),
    }
    if written.num_in_earlier:
        document["left_out"] = [
            f"{number} in {file}, whose results were not read"
            for file, number in written.num_in_earlier.items()
        ]
        document["to_write_them_again"] = "--batch-again, if those files were never uploaded or are lost"
    return document


def _read_batch(run: "LabelingRun", endpoint: "EndpointLabeler", paths: tuple[Path, ...]) -> None:
    from radtower.labeling.chat.batch_file import BatchResults
    from radtower.processing.report_text import report_sha256

    results = BatchResults(paths, run.plan.generation)
    results.check_reports(report_sha256(text) for _, text in run.reports)
    for sha256, labels in results.labels(run.pending(), endpoint):
        # A line that failed stays pending: a file that is read twice must not count its cost twice.
        run.record(sha256, labels, source=results.source(sha256))


def _counter(tokenizer: str) -> Callable[[str], float]:
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False).encode
    return lambda text: len(encode(text, add_special_tokens=False))
