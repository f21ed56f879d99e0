"""OpenAI's chat completions: the body and the answer. Fields that cannot be honoured are refused by name.

Reference: OpenAI API, "Create chat completion".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from pydantic import Field

from shared.errors import InvalidRequest
from shared.protocol import Request, Token
from shared.schemas.base import refuse_unless_neutral
from shared.schemas.common_fields import (
    Metadata,
    Priority,
    StreamFields,
    TierFields,
    Usage,
    WireFinishReason,
)
from shared.schemas.messages import Messages, to_messages
from shared.schemas.neutral_fields import NOT_SUPPORTED, Unsupported, Unused
from shared.schemas.parameter_bodies import ChatParameters
from shared.schemas.parameter_fields import parameter_field, priority_field
from shared.schemas.tools import AnswerCall, DeltaCall, ToolFields

# fields that are not supported, with their neutral values
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, [], ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
    "moderation": (None,),
    "echo": (None, False),
    "best_of": (None, 1),
}
REASONS = {
    "functions": "this server does not support this older field: send tools",
    "function_call": "this server does not support this older field: send tool_choice",
    "modalities": 'must be ["text"]: this server generates text only',
}


class ChatRequest(ChatParameters, StreamFields, ToolFields, TierFields):
    """Body of a chat completion."""

    messages: Messages
    max_completion_tokens: int | None = parameter_field("max_tokens", note="OpenAI's newer name of max_tokens")
    logprobs: bool | None = Field(None, description="return the log-probability of each token")
    top_logprobs: int | None = parameter_field("logprobs", note="requires logprobs")
    priority: Priority = priority_field("interactive")

    metadata: Metadata = Field(None, description="accepted, without effect")
    store: Unused = None
    verbosity: Unused = None
    prediction: Unused = None
    safety_identifier: Unused = None
    prompt_cache_key: Unused = None
    prompt_cache_retention: Unused = None
    prompt_cache_options: Unused = None

    functions: Unsupported = None
    function_call: Unsupported = None
    modalities: Unsupported = None
    audio: Unsupported = None
    web_search_options: Unsupported = None
    moderation: Unsupported = None
    echo: Unsupported = None
    best_of: Unsupported = None

    _refuse_unsupported = refuse_unless_neutral(UNSUPPORTED, NOT_SUPPORTED, REASONS)

    def to_request(self, tenant: str, *, stream: bool) -> Request:
        """Return the draft that admission completes. Raise InvalidRequest if fields contradict each other."""
        self.check_stream(stream=stream)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is allowed with logprobs only", param="top_logprobs")
        params = msgspec.structs.replace(self.to_params(), best_of=None)  # a parameter of completions
        if self.logprobs:
            params = msgspec.structs.replace(params, logprobs=self.top_logprobs or 0)
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise InvalidRequest(
                    "max_tokens and max_completion_tokens must be equal if both are set",
                    param="max_completion_tokens",
                )
            params = msgspec.structs.replace(params, max_tokens=self.max_completion_tokens)
        return Request(
            id="",
            model=self.model,
            messages=to_messages(self.messages),
            params=params,
            prompt_options=self.to_prompt_options(),
            cache_salt=self.cache_salt or "",
            tools=self.to_tools(),
            priority=self.class_of(self.priority),
            tenant=tenant,
            user=self.user or "",
        )


class AnswerMessage(msgspec.Struct):
    """The answer; `content` is null if the model only called tools."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[AnswerCall] | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def from_text(cls, text: str, calls: list[AnswerCall]) -> AnswerMessage:
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
    def from_token(cls, token: Token) -> TokenLogprob:
        """Return the log-probabilities of a token that has them."""
        logprobs = token.logprobs
        assert logprobs is not None
        top = [TopLogprob(text, logprob, list(text.encode())) for _, logprob, text in logprobs.top]
        return cls(logprobs.piece, logprobs.logprob, list(logprobs.piece.encode()), top)


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None

    @classmethod
    def from_tokens(cls, tokens: Iterable[Token]) -> Logprobs | None:
        """Return those of the tokens that have them, None if none has."""
        content = [TokenLogprob.from_token(token) for token in tokens if token.logprobs is not None]
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
