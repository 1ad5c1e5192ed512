"""One report put to a server: the question, one repair if the reply is of no use, and the labels."""

from collections.abc import Callable
from dataclasses import dataclass

from radtower.labeling.chat.chat_client import AskError, ChatClient
from radtower.labeling.chat.completion import Completion
from radtower.labeling.chat.logprobs import status_scores
from radtower.labeling.chat.questions import Questions
from radtower.labeling.findings import FindingsSet
from radtower.labeling.parsing import LabelParseError, ParsedReply, ParseFailure, parse_reply
from radtower.labeling.report_labels import ReportLabels

# How much of an unusable reply is handed back: enough to see what is wrong, whatever the reply.
_MAX_QUOTED_REPLY = 8000
_SCHEMA_REFUSED = (400, 422)
# What servers that break on a schema say; and so does one that is broken: every third such answer is doubted.
_SCHEMA_BREAKS = (500, 501)
_DOUBTED = 3


@dataclass
class Spent:
    """Tokens and cost of a report, all its requests together; None while nothing was counted.

    The cost is what the budget counts: a request that was lost, or whose reply has no ``usage``, is in it
    with the most that it can have cost.
    """

    tokens_in: int | None = None
    tokens_out: int | None = None
    cost_usd: float | None = None

    def add_tokens(self, completion: Completion) -> None:
        """Count the tokens of one reply."""
        if completion.usage is not None:
            self.tokens_in = (self.tokens_in or 0) + completion.usage.prompt_tokens
            self.tokens_out = (self.tokens_out or 0) + completion.usage.completion_tokens

    def add_cost(self, cost_usd: float) -> None:
        """Count the cost of one request."""
        self.cost_usd = (self.cost_usd or 0.0) + cost_usd


class Asker:
    """Asks about reports; each takes one question, and one more if need be.

    Whether the server honors a JSON schema is found out on the way, and once.
    """

    def __init__(self, client: ChatClient, questions: Questions, findings: FindingsSet) -> None:
        self._client = client
        self._questions = questions
        self._findings = findings
        self._honors_schema: bool | None = None  # None: not known yet
        self._num_broken = 0
        self.notes: list[str] = []
        """Sentences for the user, each once."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Findings, in order."""
        return self._findings.keys

    async def label(self, report: str, spent: Spent) -> ReportLabels:
        """Return the labels of a report; ``spent`` is up to date whatever happens."""
        try:
            parsed, completion = await self._ask_and_repair(report, spent)
        except (AskError, LabelParseError) as error:
            reason = f"reply:{error.reason}" if isinstance(error, LabelParseError) else str(error)
            return ReportLabels.failed(self._findings.keys, reason, **vars(spent))
        return make_labels(parsed, completion, spent)

    async def _ask_and_repair(self, report: str, spent: Spent) -> tuple[ParsedReply, Completion]:
        completion = await self._ask(
            lambda is_constrained: self._questions.ask(report, is_constrained=is_constrained), spent
        )
        try:
            return read_reply(completion, report, self._findings), completion
        except LabelParseError as error:
            if error.reason is ParseFailure.REFUSED:
                raise
            problem = str(error)
        reply = completion.text[:_MAX_QUOTED_REPLY]
        completion = await self._ask(
            lambda is_constrained: self._questions.repair(
                report, reply, problem, is_constrained=is_constrained
            ),
            spent,
        )
        return read_reply(completion, report, self._findings), completion

    async def _ask(self, question: Callable[[bool], bytes], spent: Spent) -> Completion:
        if self._honors_schema is False:
            completion = await self._client.ask(question(False), spent.add_cost)
        else:
            completion = await self._ask_with_schema(question, spent)
        spent.add_tokens(completion)
        return completion

    async def _ask_with_schema(self, question: Callable[[bool], bytes], spent: Spent) -> Completion:
        plain: Completion | None = None

        async def ask_plainly(status: int | None) -> Completion | None:
            nonlocal plain
            if self._doubts_schema(status):
                # At once and once: a server that was down must not come back in between.
                plain = await self._client.ask_once(question(False), spent.add_cost)
            if plain is not None:
                self._give_schema_up(status)
            return plain

        try:
            completion = await self._client.ask(question(True), spent.add_cost, ask_plainly)
        except AskError as error:
            # Once a schema was accepted, a refusal is about something else.
            if error.status not in _SCHEMA_REFUSED or self._honors_schema is True:
                raise
            completion = await self._client.ask(question(False), spent.add_cost)
            # Only after it worked without: the refusal may have been about something else.
            self._give_schema_up(error.status)
        else:
            if plain is None:
                self._honors_schema = True
        return completion

    def _doubts_schema(self, status: int | None) -> bool:
        if status not in _SCHEMA_BREAKS or self._honors_schema is True:
            return False
        self._num_broken += 1
        return self._honors_schema is False or self._num_broken % _DOUBTED == 0

    def _give_schema_up(self, status: int | None) -> None:
        if self._honors_schema is None:
            self._honors_schema = False
            self.notes.append(
                f"The server answers HTTP {status} to a JSON schema: it was asked without one. "
                "Replies may need more repairs."
            )


def make_labels(parsed: ParsedReply, completion: Completion, spent: Spent) -> ReportLabels:
    """Return the labels of a report whose reply was read."""
    keys = tuple(parsed.status)
    return ReportLabels(
        status=dict(parsed.status),
        # A generated word alone is no probability: without log-probabilities there is no score.
        score=status_scores(completion.tokens, keys),
        evidence=parsed.evidence,
        num_dropped_evidence=parsed.num_dropped_evidence,
        **vars(spent),
    )


def read_reply(completion: Completion, report: str, findings: FindingsSet) -> ParsedReply:
    """Read what a server answered about a report.

    Raises:
        LabelParseError: With the reason, if the reply cannot be used.
    """
    if completion.finish_reason in ("content_filter", "refusal"):
        raise LabelParseError(ParseFailure.REFUSED, "it was refused.")
    try:
        return parse_reply(completion.text, report, findings)
    except LabelParseError:
        if completion.finish_reason != "length":
            raise
    raise LabelParseError(ParseFailure.CUT_OFF, "it is too long and was cut off; keep the evidence short.")
