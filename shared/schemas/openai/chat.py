"""OpenAI's chat completions, as we accept and return them.

Reference: OpenAI API, "Create chat completion". What we cannot honour yet is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from shared.errors import InvalidRequest
from shared.protocol import Request, Token
from shared.schemas.base import asking_for_nothing
from shared.schemas.common_fields import (
    Messages,
    Metadata,
    Priority,
    StreamFields,
    Submission,
    Usage,
    WireFinishReason,
    priority_class,
)
from shared.schemas.openapi_bounds import Short
from shared.schemas.parameter_fields import parameter_field, priority_field
from shared.schemas.tools import AnswerCall, DeltaCall, ToolFields

# fields that OpenAI has and we do not, with the values that ask for nothing
NOT_YET: dict[str, tuple[Any, ...]] = {
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "prompt_cache_options": (None, {}),
    "web_search_options": (None,),
    "moderation": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "store": (None, False),
}
NotYet = Annotated[Any, Field(description="not supported: refused unless it asks for nothing")]


class ChatRequest(Submission, StreamFields, ToolFields):
    """The body of a chat completion."""

    messages: Messages
    max_completion_tokens: int | None = parameter_field("max_tokens")
    logprobs: bool | None = Field(None, description="return the log-probability of each token")
    top_logprobs: int | None = parameter_field("logprobs")
    priority: Priority = priority_field("interactive")

    safety_identifier: Short | None = Field(None, description="accepted, unused")
    metadata: Metadata = Field(None, description="accepted, unused")
    service_tier: Literal["auto", "default"] | None = Field(None, description="accepted: there is one tier")
    prompt_cache_key: Short | None = Field(None, description="accepted, unused")
    prompt_cache_retention: Short | None = Field(None, description="accepted, unused")

    functions: NotYet = None
    function_call: NotYet = None
    modalities: NotYet = None
    audio: NotYet = None
    prediction: NotYet = None
    prompt_cache_options: NotYet = None
    web_search_options: NotYet = None
    moderation: NotYet = None
    reasoning_effort: NotYet = None
    verbosity: NotYet = None
    store: NotYet = None

    _asks_for_nothing = asking_for_nothing(NOT_YET, "this server does not support it")

    def to_request(self, tenant: str, *, stream: bool) -> Request:
        """The draft that admission completes. Raises InvalidRequest where fields contradict each other."""
        self.check_stream(stream=stream)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs: only allowed with logprobs", param="top_logprobs")
        params = self.to_params()
        if self.logprobs:
            params = msgspec.structs.replace(params, logprobs=self.top_logprobs or 0)
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise InvalidRequest(
                    "max_tokens and max_completion_tokens are two names of one limit, and differ",
                    param="max_completion_tokens",
                )
            params = msgspec.structs.replace(params, max_tokens=self.max_completion_tokens)
        return Request(
            id="",
            model=self.model,
            messages=tuple(message.to_message() for message in self.messages),
            params=params,
            tools=self.to_tools(),
            priority=priority_class(self.priority),
            tenant=tenant,
            user=self.user or "",
        )


class AnswerMessage(msgspec.Struct):
    """`content` is null where the model only called tools."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[AnswerCall] | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, text: str, calls: list[AnswerCall]) -> AnswerMessage:
        return cls(text or None, tool_calls=calls) if calls else cls(text)


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]

    @classmethod
    def of(cls, token: Token) -> TokenLogprob:
        """Of a token that carries them."""
        found = token.logprobs
        assert found is not None
        top = [TopLogprob(text, logprob, list(text.encode())) for _, logprob, text in found.top]
        return cls(found.piece, found.logprob, list(found.piece.encode()), top)


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None

    @classmethod
    def of(cls, tokens: Iterable[Token]) -> Logprobs | None:
        """Of those tokens that carry them; None if none does."""
        content = [TokenLogprob.of(token) for token in tokens if token.logprobs is not None]
        return cls(content) if content else None


class Choice(msgspec.Struct):
    index: int
    message: AnswerMessage
    finish_reason: WireFinishReason
    logprobs: Logprobs | None = None


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None


class Delta(msgspec.Struct, omit_defaults=True):
    content: str | None = None
    role: str | None = None
    tool_calls: list[DeltaCall] | None = None


class ChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    finish_reason: WireFinishReason | None = None
    logprobs: Logprobs | None = None


class Chunk(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: str | None = None
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
