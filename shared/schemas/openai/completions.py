"""OpenAI's completions of plain texts, as we accept and return them.

Reference: OpenAI API, "Create completion (legacy)". What we cannot honour is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.errors import InvalidRequest
from shared.protocol import Request, Token
from shared.schemas.common_fields import Priority, StreamFields, Submission, Usage, WireFinishReason, priority_class
from shared.schemas.openapi_bounds import LIMITS
from shared.schemas.parameter_fields import parameter_field, priority_field
from shared.validation.parameters import BY_NAME

DEFAULT_MAX_TOKENS = 16  # OpenAI's default
MAX_LOGPROBS = 5
Prompt = str | tuple[int, ...]


def is_tokens(value: Any) -> bool:
    """Whether it is a list of token ids."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        return False
    return not value or (min(value) >= 0 and max(value) < 2**31)


def _prompts(most: int) -> Callable[[Any], list[Prompt]]:
    """A reader of one prompt or several, each a text or token ids. It counts them before it looks at any."""

    def read(value: Any) -> list[Prompt]:
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value:
            if isinstance(value[0], int) and is_tokens(value):
                return [tuple(value)]
            if len(value) > most:
                raise PydanticCustomError("prompt", "at most {most} are allowed", {"most": most})
            if all(isinstance(each, str) for each in value):
                return value
            if all(is_tokens(each) for each in value):
                return [tuple(each) for each in value]
        raise PydanticCustomError("prompt", "must be a text, token ids, or a list of either, which is not empty")

    return read


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "minItems": 1}
_TEXT = {"type": "string", "minLength": 1}
_TOLD = WithJsonSchema(
    {
        "anyOf": [
            _TEXT,
            {"type": "array", "items": _TEXT, "minItems": 1},
            _IDS,
            {"type": "array", "items": _IDS, "minItems": 1},
        ]
    }
)
Prompts = Annotated[Any, BeforeValidator(_prompts(LIMITS.prompts)), _TOLD]
Inputs = Annotated[Any, BeforeValidator(_prompts(LIMITS.inputs)), _TOLD]  # to embed


class CompletionRequest(Submission, StreamFields):
    """The body of a completion."""

    prompt: Prompts = Field(description="a text, token ids, or a list of either; each is answered n times")
    max_tokens: int | None = parameter_field("max_tokens", default=DEFAULT_MAX_TOKENS)
    logprobs: int | None = parameter_field("logprobs", maximum=MAX_LOGPROBS)
    echo: bool | None = parameter_field("echo")
    best_of: int | None = parameter_field("best_of")
    suffix: None = Field(None, description="not supported: no text is written in front of a given end")
    priority: Priority = priority_field("interactive")

    def to_requests(self, tenant: str, *, stream: bool) -> list[Request]:
        """The drafts, one for each prompt. Raises InvalidRequest where fields contradict each other."""
        self.check_stream(stream=stream)
        if self.best_of not in (None, self.n or 1):
            raise InvalidRequest("best_of: only as many choices as n are made", param="best_of")
        if self.logprobs is not None:
            BY_NAME["logprobs"].check_range(self.logprobs, MAX_LOGPROBS)
        base = self.to_params()
        echo = bool(self.echo)
        return [
            Request(
                id="",
                model=self.model,
                prompt=prompt,
                params=msgspec.structs.replace(
                    base,
                    max_tokens=DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
                    logprobs=self.logprobs,
                    echo=echo and (self.logprobs is not None or not isinstance(prompt, str)),
                ),
                priority=priority_class(self.priority),
                tenant=tenant,
                user=self.user or "",
            )
            for prompt in self.prompt
        ]


class TextLogprobs(msgspec.Struct):
    """Of each token: its text by itself, its log-probability, those of the likeliest with its own, and where in
    the choice's text it stands, in characters. The first of an echoed prompt has no log-probability.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    @classmethod
    def of(cls, tokens: Sequence[Token], offset: int) -> TextLogprobs:
        """`offset`: where the first of `tokens` stands."""
        found = cls([], [], [], [])
        for token in tokens:
            known = token.logprobs
            found.tokens.append(token.text if known is None else known.piece)
            found.token_logprobs.append(None if known is None else known.logprob)
            found.top_logprobs.append(_likeliest(token))
            found.text_offset.append(offset)
            offset += len(token.text)
        return found


def _likeliest(token: Token) -> dict[str, float] | None:
    if (known := token.logprobs) is None:
        return None
    return {known.piece: known.logprob} | {text: logprob for _, logprob, text in known.top}


def text_of(tokens: Iterable[Token]) -> str:
    return "".join([token.text for token in tokens])


class TextChoice(msgspec.Struct):
    index: int
    text: str
    finish_reason: WireFinishReason | None
    logprobs: TextLogprobs | None = None


class Completion(msgspec.Struct):
    """A completion, or a chunk of one; `finish_reason` is null in all of a choice's chunks but its last."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: str | None = None
