"""Fields that several APIs share: sampling parameters, messages, usage.

`shared.validation.request_limits` checks the ranges, for every transport.
"""

from __future__ import annotations

import json
from collections.abc import Container
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from shared.errors import InvalidRequest
from shared.protocol import FinishReason, Message, PriorityClass, PromptOptions, SamplingParams
from shared.schemas.base import Body, Text
from shared.schemas.openapi_bounds import LIMITS, Items, Short
from shared.schemas.parameter_fields import ModelName, parameter_field
from shared.schemas.structured import StructuredFields
from shared.schemas.tools import PastCall
from shared.validation.parameters import BY_NAME

Priority = Literal["interactive", "standard", "batch"]
if TYPE_CHECKING:
    WireFinishReason = FinishReason  # mypy reports each place that a new reason breaks
else:
    WireFinishReason = str  # JSON Schemas and decoders stay open: a later version's reason must not break a reader
_JSON_TEXTS = ("chat_template_kwargs", "documents")  # of PromptOptions
MAX_METADATA_KEYS, MAX_METADATA_KEY_CHARS, MAX_METADATA_VALUE_CHARS = 16, 64, 512  # OpenAI's bounds


def _strings(stop: Any) -> Any:
    """Return one string as a list. Empty ones stop nothing, and are left out."""
    strings = [stop] if isinstance(stop, str) else stop
    return [each for each in strings if each != ""] if isinstance(strings, list) else strings


def _check_metadata(metadata: dict[str, str] | None) -> dict[str, str] | None:
    if metadata is not None and (
        len(metadata) > MAX_METADATA_KEYS
        or any(
            len(key) > MAX_METADATA_KEY_CHARS or len(value) > MAX_METADATA_VALUE_CHARS
            for key, value in metadata.items()
        )
    ):
        raise PydanticCustomError(
            "metadata",
            f"must have at most {MAX_METADATA_KEYS} keys of at most {MAX_METADATA_KEY_CHARS} characters, "
            f"with values of at most {MAX_METADATA_VALUE_CHARS} characters",
        )
    return metadata


_METADATA = {
    "type": "object",
    "maxProperties": MAX_METADATA_KEYS,
    "propertyNames": {"type": "string", "maxLength": MAX_METADATA_KEY_CHARS},
    "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE_CHARS},
}
Metadata = Annotated[
    dict[str, str] | None, AfterValidator(_check_metadata), WithJsonSchema({"anyOf": [_METADATA, {"type": "null"}]})
]
Stop = Annotated[
    Items[str] | None,
    BeforeValidator(_strings),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}
    ),
]


class ChatMessage(Body):
    """One turn. Other fields of an SDK's answer are accepted if they are empty, so that it can be sent back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Items[PastCall] | None = Field(None, description="the tool calls of this answer")
    content: Annotated[Text | None, Field(validate_default=True)] = None
    tool_call_id: Short | None = Field(
        None, validate_default=True, description="id of the tool call that this message answers"
    )
    name: Short | None = Field(None, description="name of the speaker, for chat templates that use it")
    refusal: None = None
    annotations: Annotated[list[Any] | None, Field(max_length=0)] = None
    audio: None = None
    function_call: None = None

    @field_validator("tool_calls")
    @classmethod
    def _check_tool_calls(cls, calls: list[PastCall] | None, info: ValidationInfo) -> list[PastCall] | None:
        if calls and info.data.get("role") != "assistant":
            raise PydanticCustomError("tool_calls", "only messages of the assistant may have tool_calls")
        return calls

    @field_validator("content")
    @classmethod
    def _check_content(cls, content: str | None, info: ValidationInfo) -> str | None:
        if content is None and not info.data.get("tool_calls"):
            raise PydanticCustomError("content", "content is required")
        return content

    @field_validator("tool_call_id")
    @classmethod
    def _check_tool_call_id(cls, call: str | None, info: ValidationInfo) -> str | None:
        if (call is None) == (info.data.get("role") == "tool"):
            raise PydanticCustomError(
                "tool_call_id", "tool_call_id is required in messages of a tool, and allowed in no other"
            )
        return call

    def to_message(self) -> Message:
        return Message(
            "system" if self.role == "developer" else self.role,
            self.content or "",
            tool_calls=tuple(call.to_call() for call in self.tool_calls or ()),
            tool_call_id=self.tool_call_id,
            name=self.name,
        )


Messages = Annotated[Items[ChatMessage], Field(max_length=LIMITS.messages)]


class SamplingFields(Body):
    """Fields of the parameters of shared.validation.parameters.

    Only those are declared here whose type the table does not say, or that code reads by name. `parameter_body`
    adds the others.
    """

    seed: int | None = parameter_field("seed")

    @property
    def given_seed(self) -> int | None:
        """The seed; None if the server is to draw one."""
        seed: int | None = BY_NAME["seed"].given(self.seed)
        return seed

    def to_params(self) -> SamplingParams:
        """Return the parameters that have a field of their name, without the seed, which admission assigns."""
        return SamplingParams(**self._given(SamplingParams, besides=("seed", "logprobs", "structured_outputs")))

    def to_prompt_options(self) -> PromptOptions:
        values = self._given(PromptOptions)
        texts = {name: json.dumps(values[name]) for name in _JSON_TEXTS if name in values}
        return PromptOptions(**values | texts)

    def _given(self, struct: type[msgspec.Struct], besides: Container[str] = ()) -> dict[str, Any]:
        names = (name for name in struct.__struct_fields__ if name not in besides)
        values = {name: BY_NAME[name].given(getattr(self, name, None)) for name in names}
        return {name: value for name, value in values.items() if value is not None}


class Submission(SamplingFields, StructuredFields):
    """Fields of every request for an answer of one or several choices, without its input."""

    model: ModelName = ""
    max_tokens: int | None = parameter_field("max_tokens")
    stop: Stop = parameter_field("stop")
    n: int | None = parameter_field("n")
    logit_bias: dict[int, float] | None = parameter_field("logit_bias")
    cache_salt: str | None = parameter_field("cache_salt")
    timeout: float | None = parameter_field("timeout")
    user: str | None = parameter_field("user")

    def to_params(self) -> SamplingParams:
        """Return the parameters. Raise InvalidRequest if fields contradict each other."""
        return msgspec.structs.replace(super().to_params(), structured_outputs=self.to_structured())


class StreamOptions(Body):
    include_usage: bool | None = Field(None, description="end with a chunk with the usage and without choices")
    continuous_usage_stats: bool | None = Field(None, description="send the usage with each chunk")
    include_obfuscation: bool | None = Field(None, description="accepted, but nothing is padded")


class StreamFields(Body):
    """Fields that ask for a streamed answer."""

    stream: bool | None = Field(None, description="send the answer as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="only with stream")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def check_stream(self, *, stream: bool) -> None:
        """Raise InvalidRequest for stream options without a stream."""
        if self.stream_options is not None and not stream:
            raise InvalidRequest("stream_options is allowed with stream only", param="stream_options")


def priority_class(priority: Priority) -> PriorityClass:
    return PriorityClass(priority)


class Usage(msgspec.Struct):
    """Exact token counts, with OpenAI's names."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def from_counts(cls, prompt_tokens: int, completion_tokens: int) -> Self:
        return cls(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)
