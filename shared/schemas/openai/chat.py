"""OpenAI's chat completions: the body and the answer. Fields that cannot be honoured are refused by name.

Reference: OpenAI API, "Create chat completion".
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from pydantic import Field

from shared.errors import InvalidRequest
from shared.protocol import PriorityClass, Request
from shared.schemas.base import refuse_unless_neutral
from shared.schemas.common_fields import (
    ChatTemplateField,
    Metadata,
    PriorityField,
    ShownStopReason,
    StreamFields,
    TierFields,
    Usage,
    WireFinishReason,
)
from shared.schemas.messages import Messages, to_messages
from shared.schemas.neutral_fields import NOT_SUPPORTED, Unsupported, Unused
from shared.schemas.openai.logprobs import Logprobs, PromptLogprobs
from shared.schemas.parameter_bodies import ChatParameters
from shared.schemas.parameter_fields import parameter_field
from shared.schemas.tools import AnswerCall, DeltaCall, ToolFields

# fields that are not supported, with their neutral values
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, [], ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
    "moderation": (None,),
    "best_of": (None, 1),
}
REASONS = {
    "functions": "this server does not support this older field: send tools",
    "function_call": "this server does not support this older field: send tool_choice",
    "modalities": 'must be ["text"]: this server generates text only',
}


class ChatRequest(ChatParameters, ChatTemplateField, StreamFields, ToolFields, TierFields):
    """Body of a chat completion."""

    messages: Messages
    max_completion_tokens: int | None = parameter_field(
        "max_tokens", note="OpenAI's newer name of max_tokens, over which it takes precedence"
    )
    logprobs: bool | None = Field(None, description="return the log-probability of each token")
    top_logprobs: int | None = parameter_field("logprobs", note="requires logprobs")
    return_tokens_as_token_ids: bool | None = parameter_field("return_tokens_as_token_ids")
    echo: bool | None = Field(
        None, description="begin each choice with the last message, if the answer continues its role"
    )
    priority: PriorityField = parameter_field("priority", default="interactive")

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
    best_of: Unsupported = None

    _refuse_unsupported = refuse_unless_neutral(UNSUPPORTED, NOT_SUPPORTED, REASONS)

    def to_request(self, tenant: str) -> Request:
        """Return the draft that admission completes. Raise InvalidRequest if fields contradict each other."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs is allowed with logprobs only", param="top_logprobs")
        params = msgspec.structs.replace(
            self.to_params(),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            echo=False,  # of a message, which is known without a worker
            best_of=None,  # a parameter of completions
        )
        if self.max_completion_tokens is not None:
            params = msgspec.structs.replace(params, max_tokens=self.max_completion_tokens)
        return Request(
            id="",
            model=self.model,
            messages=to_messages(self.messages),
            params=params,
            prompt_options=self.to_prompt_options(),
            cache_salt=self.cache_salt or "",
            tools=self.to_tools(),
            priority=self.class_of(self.priority, PriorityClass.INTERACTIVE),
            tenant=tenant,
            user=self.user or "",
        )


class AnswerMessage(msgspec.Struct):
    """The answer; `content` is null if the model only reasoned or called tools.

    The reasoning has both names that clients read: DeepSeek's and that of OpenRouter and vLLM.
    """

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[AnswerCall] | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def from_text(cls, text: str, reasoning: str, calls: list[AnswerCall]) -> AnswerMessage:
        thought = reasoning or msgspec.UNSET
        content = (text or None) if calls or reasoning else text
        return cls(content, tool_calls=calls or msgspec.UNSET, reasoning_content=thought, reasoning=thought)


class Choice(msgspec.Struct):
    index: int
    message: AnswerMessage
    finish_reason: WireFinishReason
    logprobs: Logprobs | None = None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    stop_reason: ShownStopReason = msgspec.UNSET


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class Delta(msgspec.Struct, omit_defaults=True):
    content: str | None = None
    role: str | None = None
    tool_calls: list[DeltaCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    finish_reason: WireFinishReason | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    stop_reason: ShownStopReason = msgspec.UNSET


class Chunk(msgspec.Struct):
    """A chunk of a completion; the first has what the request asks for about its prompt."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: str | None = None
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET
