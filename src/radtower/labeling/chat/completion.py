"""What comes back: the part of a chat completion that is read, checked with pydantic."""

import math

from pydantic import BaseModel, Field, TypeAdapter, ValidationError


class TokenChoice(BaseModel):
    """A token that could have been written, and the logarithm of its probability."""

    token: str
    logprob: float
    # UTF-8, where the server sends it: a token may end within a letter.
    token_bytes: list[int] | None = Field(default=None, alias="bytes")

    @property
    def utf8(self) -> bytes:
        """What the token writes."""
        return self.token.encode() if self.token_bytes is None else bytes(self.token_bytes)

    @property
    def probability(self) -> float:
        """Between 0 and 1."""
        return math.exp(min(self.logprob, 0.0))


class WrittenToken(TokenChoice):
    """A token of the reply, with the likeliest choices in its place."""

    top_logprobs: list[TokenChoice] = []


class _Part(BaseModel):
    type: str
    text: str | None = None


class _Message(BaseModel):
    content: str | list[_Part] | None = None  # some servers send a reply in parts
    refusal: str | None = None


class _Logprobs(BaseModel):
    content: list[WrittenToken] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(BaseModel):
    cached_tokens: int | None = None


class Usage(BaseModel):
    """Tokens that a request used, as the server counts them."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """Part of ``prompt_tokens`` that the server had in its cache."""
        cached = 0 if self.prompt_tokens_details is None else self.prompt_tokens_details.cached_tokens or 0
        return min(max(cached, 0), self.prompt_tokens)


class Completion(BaseModel):
    """A chat completion; ``usage`` is None where the server does not count."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The reply."""
        content = self.choices[0].message.content
        if isinstance(content, list):  # parts of other types are thoughts, images, ...
            return "".join(part.text or "" for part in content if part.type == "text")
        return content or ""

    @property
    def finish_reason(self) -> str | None:
        """Why the reply ends: ``stop``, ``length``, ``content_filter``, ...; ``refusal`` where it is one."""
        choice = self.choices[0]
        return "refusal" if choice.message.refusal and not self.text else choice.finish_reason

    @property
    def tokens(self) -> list[WrittenToken] | None:
        """The reply in tokens, where log-probabilities were asked for and sent."""
        logprobs = self.choices[0].logprobs
        return None if logprobs is None else logprobs.content


_COMPLETION = TypeAdapter(Completion)


def read_completion(body: bytes) -> Completion | None:
    """Return the completion; None if the body is something else, such as the page of a proxy."""
    try:
        return _COMPLETION.validate_json(body)
    except ValidationError:
        return None
