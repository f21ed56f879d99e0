"""OpenAI's response object, and the events of its stream.

Reference: OpenAI API, "The response object" and "Streaming events".
"""

from __future__ import annotations

from typing import Literal

import msgspec

from shared.errors import HeadraceError
from shared.protocol import Usage
from shared.schemas.openai.logprobs import TokenLogprob
from shared.schemas.openai.response_items import Item, OutputItem, OutputText, ReasoningText
from shared.schemas.openai.response_tools import (
    AllowedTold,
    CustomTold,
    FormatTold,
    FunctionTold,
    NamedCustomTold,
    NamedTold,
    PlainText,
)
from shared.schemas.tools import Word

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class ResponseFailure(msgspec.Struct):
    """Error of a failed response: `code` is one of OpenAI's, `type` is Headrace's own."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str
    type: str
    param: str | None

    @classmethod
    def from_error(cls, error: HeadraceError) -> ResponseFailure:
        code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"] = "invalid_prompt"
        if error.status == 429:
            code = "rate_limit_exceeded"
        elif error.status >= 500:
            code = "server_error"
        return cls(code, error.message, error.code, error.param)


class IncompleteDetails(msgspec.Struct):
    reason: Literal["max_output_tokens", "content_filter"] = "max_output_tokens"


class InputTokensDetails(msgspec.Struct):
    """Tokens of the input that were found in the prefix cache. Writes to it are not reported."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    """Exact token counts."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails = msgspec.field(default_factory=InputTokensDetails)
    output_tokens_details: OutputTokensDetails = msgspec.field(default_factory=OutputTokensDetails)

    @classmethod
    def from_usage(cls, usage: Usage) -> ResponseUsage:
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        return cls(
            prompt,
            completion,
            prompt + completion,
            InputTokensDetails(usage.cached_tokens),
            OutputTokensDetails(usage.reasoning_tokens),
        )


class Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None


class TextConfig(msgspec.Struct):
    format: FormatTold = msgspec.field(default_factory=PlainText)
    verbosity: Literal["low", "medium", "high"] = "medium"


class ResponseObject(msgspec.Struct, kw_only=True):
    """A response in its current state. Times are in seconds since the epoch. `output` is set once it has ended.

    `completed_at` is set if the response was requested by its id.
    """

    id: str = ""
    object: Literal["response"] = "response"
    created_at: int = 0
    status: ResponseStatus = "queued"
    background: bool
    completed_at: int | None = None
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: Reasoning = msgspec.field(default_factory=Reasoning)
    safety_identifier: str | None
    service_tier: Literal["default", "flex"] = "default"
    store: bool
    temperature: float
    text: TextConfig
    tool_choice: Word | NamedTold | NamedCustomTold | AllowedTold
    tools: list[FunctionTold | CustomTold]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None


class InputTokens(msgspec.Struct):
    """Number of tokens of a response's input, with instructions, tools and the template's own."""

    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


class ResponseDeleted(msgspec.Struct):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class ItemList(msgspec.Struct):
    """Some of a response's input items."""

    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


StateKind = Literal[
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.completed",
    "response.incomplete",
    "response.failed",
]
ItemKind = Literal["response.output_item.added", "response.output_item.done"]
PartKind = Literal["response.content_part.added", "response.content_part.done"]


class StateEvent(msgspec.Struct):
    """State of the response."""

    type: StateKind
    sequence_number: int
    response: ResponseObject


class ItemEvent(msgspec.Struct):
    type: ItemKind
    sequence_number: int
    output_index: int
    item: OutputItem


class PartEvent(msgspec.Struct):
    type: PartKind
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: OutputText | ReasoningText


class TextDelta(msgspec.Struct, kw_only=True):
    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class TextDone(msgspec.Struct, kw_only=True):
    type: Literal["response.output_text.done"] = "response.output_text.done"
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class ReasoningDelta(msgspec.Struct, kw_only=True):
    type: Literal["response.reasoning_text.delta"] = "response.reasoning_text.delta"
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str


class ReasoningDone(msgspec.Struct, kw_only=True):
    type: Literal["response.reasoning_text.done"] = "response.reasoning_text.done"
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str


class ArgumentsDelta(msgspec.Struct, kw_only=True):
    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(msgspec.Struct, kw_only=True):
    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str


class CustomInputDelta(msgspec.Struct, kw_only=True):
    type: Literal["response.custom_tool_call_input.delta"] = "response.custom_tool_call_input.delta"
    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class CustomInputDone(msgspec.Struct, kw_only=True):
    type: Literal["response.custom_tool_call_input.done"] = "response.custom_tool_call_input.done"
    sequence_number: int
    item_id: str
    output_index: int
    input: str


class ErrorEvent(msgspec.Struct, kw_only=True):
    """End of a stream before the end of its response; `sequence_number` repeats the last one."""

    type: Literal["error"] = "error"
    sequence_number: int
    code: str
    message: str
    param: str | None


NumberedEvent = (
    StateEvent
    | ItemEvent
    | PartEvent
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
    | CustomInputDelta
    | CustomInputDone
)
