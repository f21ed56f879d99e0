"""Fields that several APIs share: sampling parameters, streams, usage.

`shared.validation.request_limits` checks the ranges, for every transport.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared import protocol
from shared.protocol import (
    DEFAULT_PROMPT_OPTIONS,
    FinishReason,
    PriorityClass,
    PromptOptions,
    SamplingParams,
    StopReason,
)
from shared.schemas.base import Body, refuse_unless_neutral
from shared.schemas.neutral_fields import NeutralFields
from shared.schemas.openapi_bounds import Items, Short
from shared.schemas.parameter_fields import ModelName, parameter_field
from shared.schemas.structured import StructuredFields
from shared.validation.parameters import BY_NAME

Priority = Literal["interactive", "standard", "batch"]
MIN_PRIORITY, MAX_PRIORITY = -(2**31), 2**31 - 1  # of vLLM's integers
if TYPE_CHECKING:
    WireFinishReason = FinishReason  # mypy reports each place that a new reason breaks
else:
    WireFinishReason = str  # JSON Schemas and decoders stay open: a later version's reason must not break a reader
_JSON_TEXTS = ("chat_template_kwargs", "documents")  # of PromptOptions
ShownStopReason = StopReason | msgspec.UnsetType  # vLLM's field; left out where it would be null
MAX_METADATA_KEYS, MAX_METADATA_KEY_CHARS, MAX_METADATA_VALUE_CHARS = 16, 64, 512  # OpenAI's bounds


def _priority_name(priority: Any) -> Any:
    """Return the class that vLLM's integer stands for: it runs lower numbers first, and 0 is its default."""
    if type(priority) is not int or not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        return priority
    if priority == 0:
        return None
    return "interactive" if priority < 0 else "batch"


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


PriorityField = Annotated[
    Priority | None,  # None is the default class of the key, the route or the API
    BeforeValidator(_priority_name),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(get_args(Priority))},
                {"type": "integer", "minimum": MIN_PRIORITY, "maximum": MAX_PRIORITY},
                {"type": "null"},
            ]
        }
    ),
]
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


@functools.cache
def _declared(body: type[Body], struct: type[msgspec.Struct]) -> frozenset[str]:
    """Return the fields of a struct that a body declares. Unknown fields are attributes of a body too."""
    return frozenset(body.model_fields.keys() & set(struct.__struct_fields__))


class ParameterFields(Body):
    """Base class of bodies with fields of the parameters of shared.validation.parameters."""

    def to_prompt_options(self) -> PromptOptions:
        if not (values := self._given(PromptOptions)):
            return DEFAULT_PROMPT_OPTIONS
        texts = {name: json.dumps(values[name], ensure_ascii=False) for name in _JSON_TEXTS if name in values}
        return PromptOptions(**values | texts)

    def _given(self, struct: type[msgspec.Struct], besides: Iterable[str] = ()) -> dict[str, Any]:
        """Return the values of a struct that this body declares and its sender gave."""
        names = _declared(type(self), struct).intersection(self.model_fields_set).difference(besides)
        values = {name: BY_NAME[name].given(getattr(self, name)) for name in names}
        return {name: value for name, value in values.items() if value is not None}


class ChatTemplateField(Body):
    """Refusal of a chat template in a request: it is code that the server would run for any caller."""

    chat_template: Any = Field(None, description="refused: chats are rendered with the model's own template")

    _refuse_template = refuse_unless_neutral(
        {"chat_template": (None,)}, "this server renders chats with the model's own template only"
    )


class SamplingFields(ParameterFields):
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


class Submission(SamplingFields, StructuredFields, NeutralFields):
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
    continuous_usage_stats: bool | None = Field(
        None, description="with include_usage: send the usage so far with each chunk"
    )
    include_obfuscation: bool | None = Field(None, description="accepted, but nothing is padded")


class StreamFields(Body):
    """Fields that ask for a streamed answer."""

    stream: bool | None = Field(None, description="send the answer as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="without effect unless the answer is streamed")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """True if each chunk has the usage so far. As in vLLM, only together with include_usage."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class TierFields(Body):
    """OpenAI's service tiers, as classes of the queue."""

    service_tier: Short | None = Field(
        None, description="flex waits in the class batch, unless priority is set; others have no effect"
    )

    @property
    def flexible(self) -> bool:
        return self.service_tier == "flex"

    def class_of(self, priority: Priority | None, usual: PriorityClass) -> PriorityClass:
        """Return the class of a body with this `priority`, or the `usual` one if neither it nor a tier is set."""
        return priority_class(priority, PriorityClass.BATCH if self.flexible else usual)


def priority_class(priority: Priority | None, usual: PriorityClass) -> PriorityClass:
    return usual if priority is None else PriorityClass(priority)


def shown_stop_reason(reason: StopReason | None) -> ShownStopReason:
    return msgspec.UNSET if reason is None else reason


class CompletionTokensDetails(msgspec.Struct):
    """Completion tokens by kind."""

    reasoning_tokens: int


class PromptTokensDetails(msgspec.Struct):
    """Tokens of the prompt that were found in the prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """Exact token counts, with OpenAI's names.

    The details of the prompt are known at the end of an answer; those of the completion are there if the model
    reasoned.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails | msgspec.UnsetType = msgspec.UNSET
    prompt_tokens_details: PromptTokensDetails | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def from_counts(cls, prompt_tokens: int, completion_tokens: int, reasoning_tokens: int = 0) -> Self:
        details = CompletionTokensDetails(reasoning_tokens) if reasoning_tokens else msgspec.UNSET
        return cls(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, details)

    @classmethod
    def from_usage(cls, usage: protocol.Usage) -> Self:
        """Return the usage of an answer that has ended."""
        used = cls.from_counts(usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens)
        used.prompt_tokens_details = PromptTokensDetails(usage.cached_tokens)
        return used
