"""The fields that all ways in share: sampling parameters, messages, usage, and the strictness of all bodies.

Ranges are not checked here but by shared.limits, which holds for every transport.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.protocol import Message, PriorityClass, SamplingParams

Priority = Literal["interactive", "standard", "batch"]
KEYS, KEY_CHARS, VALUE_CHARS = 16, 64, 512  # of metadata, OpenAI's bounds
SEEDS = "the same seed, parameters and model give the same answer; drawn by the server when absent"


class Body(BaseModel):
    """A request body: types are not coerced, unknown names are refused, numbers are finite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def _text(content: Any) -> Any:
    """OpenAI's list of text parts as one string."""
    if not isinstance(content, list):
        return content
    if not content:
        raise PydanticCustomError("content", "content must not be an empty list")
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise PydanticCustomError(
                "content", "part {i} is not of type text; other parts are not supported", {"i": i}
            )
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise PydanticCustomError("content", "part {i} must have a type and a text, nothing else", {"i": i})
    return "".join(part["text"] for part in content)


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


Metadata = Annotated[dict[str, str] | None, AfterValidator(_small)]
_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
Text = Annotated[
    str,
    BeforeValidator(_text),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART, "minItems": 1}]}),
]
Stop = Annotated[
    list[str] | None,
    BeforeValidator(_strings),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}
    ),
]


class ChatMessage(Body):
    """One turn. What an SDK's own answer carries beside role and content may come back with it, if it is empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    refusal: None = None
    annotations: Annotated[list[Any] | None, Field(max_length=0)] = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any] | None, Field(max_length=0)] = None

    def to_message(self) -> Message:
        return Message("system" if self.role == "developer" else self.role, self.content)


class SamplingFields(Body):
    """How tokens are chosen, by OpenAI's names and defaults, and some of our own."""

    max_tokens: int | None = Field(
        None, description="most tokens of a choice; default: what the context has room for"
    )
    temperature: float | None = Field(None, description="0 to 2; 0 takes the likeliest token; default 1")
    top_p: float | None = Field(None, description="above 0, to 1; default 1")
    top_k: int | None = Field(None, description="keep the k likeliest tokens; default 0: all")
    min_p: float | None = Field(None, description="0 to 1: least share of the likeliest token's probability")
    presence_penalty: float | None = Field(None, description="-2 to 2; default 0")
    frequency_penalty: float | None = Field(None, description="-2 to 2; default 0")
    repetition_penalty: float | None = Field(None, description="above 0, to 2; default 1: none")
    stop: Stop = Field(None, description="up to 16 strings that end a choice and are not part of it")
    seed: int | None = Field(None, description=SEEDS)
    n: int | None = Field(None, description="number of choices; default 1")
    ignore_eos: bool = Field(False, description="go on past the model's end of text")

    def to_params(self) -> SamplingParams:
        """Without the seed: admission assigns it."""
        given = {
            name: value
            for name in SamplingFields.model_fields
            if name not in ("seed", "stop") and (value := getattr(self, name)) is not None
        }
        return SamplingParams(**given, stop=tuple(self.stop or ()))


class Submission(SamplingFields):
    """What every request has beside its input."""

    model: str
    timeout: float | None = Field(None, description="seconds from now after which the request ends unfinished")
    user: str | None = Field(None, description="your name for your own user, for limits and usage records")


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
