"""The fields that all ways in share: sampling parameters, messages, usage.

Ranges are not checked here but by shared.validation.request_limits, which holds for every transport.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from shared.errors import InvalidRequest
from shared.protocol import FinishReason, Message, PriorityClass, SamplingParams
from shared.schemas.base import Body, Text
from shared.schemas.openapi_bounds import LIMITS, Items, Short
from shared.schemas.parameter_fields import flag_field, parameter_field
from shared.schemas.structured import StructuredFields
from shared.schemas.tools import PastCall

Priority = Literal["interactive", "standard", "batch"]
if TYPE_CHECKING:
    WireFinishReason = FinishReason  # mypy reports each place that a new reason breaks
else:
    WireFinishReason = str  # JSON Schemas and decoders stay open: a later version's reason must not break a reader
KEYS, KEY_CHARS, VALUE_CHARS = 16, 64, 512  # of metadata, OpenAI's bounds


def _strings(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def _small(metadata: dict[str, str] | None) -> dict[str, str] | None:
    if metadata is not None and (
        len(metadata) > KEYS
        or any(len(key) > KEY_CHARS or len(value) > VALUE_CHARS for key, value in metadata.items())
    ):
        raise PydanticCustomError(
            "metadata", f"up to {KEYS} texts of {VALUE_CHARS} characters, by names of {KEY_CHARS}"
        )
    return metadata


_METADATA = {
    "type": "object",
    "maxProperties": KEYS,
    "propertyNames": {"type": "string", "maxLength": KEY_CHARS},
    "additionalProperties": {"type": "string", "maxLength": VALUE_CHARS},
}
Metadata = Annotated[
    dict[str, str] | None, AfterValidator(_small), WithJsonSchema({"anyOf": [_METADATA, {"type": "null"}]})
]
Stop = Annotated[
    Items[str] | None,
    BeforeValidator(_strings),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}
    ),
]


class ChatMessage(Body):
    """One turn. What an SDK's own answer carries beside may come back with it, if it is empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Items[PastCall] | None = Field(None, description="the calls that this answer made")
    content: Annotated[Text | None, Field(validate_default=True)] = None
    tool_call_id: Short | None = Field(None, validate_default=True, description="of the call that a tool answers")
    name: Short | None = Field(None, description="of who speaks; for chat templates that tell it")
    refusal: None = None
    annotations: Annotated[list[Any] | None, Field(max_length=0)] = None
    audio: None = None
    function_call: None = None

    @field_validator("tool_calls")
    @classmethod
    def _of_the_assistant(cls, calls: list[PastCall] | None, info: ValidationInfo) -> list[PastCall] | None:
        if calls and info.data.get("role") != "assistant":
            raise PydanticCustomError("tool_calls", "only an assistant calls tools")
        return calls

    @field_validator("content")
    @classmethod
    def _something(cls, content: str | None, info: ValidationInfo) -> str | None:
        if content is None and not info.data.get("tool_calls"):
            raise PydanticCustomError("content", "content is needed")
        return content

    @field_validator("tool_call_id")
    @classmethod
    def _of_a_tool(cls, call: str | None, info: ValidationInfo) -> str | None:
        if (call is None) == (info.data.get("role") == "tool"):
            raise PydanticCustomError("tool_call_id", "a message of a tool, and no other, has a tool_call_id")
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
    """Sampling parameters with OpenAI's names and defaults, and Headrace's own: shared.validation.parameters."""

    max_tokens: int | None = parameter_field("max_tokens")
    temperature: float | None = parameter_field("temperature")
    top_p: float | None = parameter_field("top_p")
    top_k: int | None = parameter_field("top_k")
    min_p: float | None = parameter_field("min_p")
    presence_penalty: float | None = parameter_field("presence_penalty")
    frequency_penalty: float | None = parameter_field("frequency_penalty")
    repetition_penalty: float | None = parameter_field("repetition_penalty")
    stop: Stop = parameter_field("stop")
    seed: int | None = parameter_field("seed")
    n: int | None = parameter_field("n")
    ignore_eos: bool = flag_field("ignore_eos")
    logit_bias: dict[int, float] | None = parameter_field("logit_bias")

    def to_params(self) -> SamplingParams:
        """Return the parameters without the seed, which admission assigns."""
        values = {
            name: value
            for name in SamplingFields.model_fields
            if name not in ("seed", "stop") and (value := getattr(self, name)) is not None
        }
        return SamplingParams(**values, stop=tuple(self.stop or ()))


class Submission(SamplingFields, StructuredFields):
    """What every request has beside its input."""

    model: str
    timeout: float | None = parameter_field("timeout")
    user: str | None = parameter_field("user")

    def to_params(self) -> SamplingParams:
        """Raises InvalidRequest where fields contradict each other."""
        return msgspec.structs.replace(super().to_params(), structured_outputs=self.to_structured())


class StreamOptions(Body):
    include_usage: bool | None = Field(None, description="end with a chunk that has the usage and no choices")
    include_obfuscation: bool | None = Field(None, description="accepted; nothing is padded")


class StreamFields(Body):
    """Whether an answer comes in chunks, and what these tell."""

    stream: bool | None = Field(None, description="answer by server-sent events")
    stream_options: StreamOptions | None = Field(None, description="only with stream")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def check_stream(self, *, stream: bool) -> None:
        """Raises InvalidRequest for options of a stream where there is none."""
        if self.stream_options is not None and not stream:
            raise InvalidRequest("stream_options: only allowed with stream", param="stream_options")


def priority_class(priority: Priority) -> PriorityClass:
    return PriorityClass(priority)


class Usage(msgspec.Struct):
    """Exact token counts, by OpenAI's names."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Self:
        return cls(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)
