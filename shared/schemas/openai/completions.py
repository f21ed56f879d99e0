"""OpenAI's completions of plain texts: the body and the answer. Fields that cannot be honoured are refused by name.

Reference: OpenAI API, "Create completion (legacy)".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.errors import InvalidRequest
from shared.protocol import PriorityClass, Request, Token
from shared.schemas.common_fields import (
    PriorityField,
    ShownStopReason,
    StreamFields,
    Usage,
    WireFinishReason,
    priority_class,
)
from shared.schemas.openai.logprobs import PromptLogprobs, TextLogprobs
from shared.schemas.openapi_bounds import LIMITS
from shared.schemas.parameter_bodies import CompletionParameters
from shared.schemas.parameter_fields import parameter_field
from shared.validation.parameters import BY_NAME
from shared.validation.sampling_parameters import MAX_TOKEN_ID

DEFAULT_MAX_TOKENS = 16  # OpenAI's default
MAX_LOGPROBS = 5
Prompt = str | tuple[int, ...]


def is_token_ids(value: Any) -> bool:
    """Return whether `value` is a list of token ids, which may be empty."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        return False
    return not value or (min(value) >= 0 and max(value) <= MAX_TOKEN_ID)


def _prompts(maximum: int) -> Callable[[Any], list[Prompt]]:
    """Return a parser of one prompt or several, each a text or token ids. It counts them before it checks any."""

    def read(value: Any) -> list[Prompt]:
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value:
            if isinstance(value[0], int) and is_token_ids(value):
                return [tuple(value)]
            if len(value) > maximum:
                raise PydanticCustomError("prompt", "must have at most {maximum} entries", {"maximum": maximum})
            if all(isinstance(each, str) for each in value):
                return value
            if all(is_token_ids(each) for each in value):
                return [tuple(each) for each in value]
        raise PydanticCustomError("prompt", "must be a text, token ids, or a list of either, not empty")

    return read


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID}, "minItems": 1}
_TEXT = {"type": "string", "minLength": 1}
_PROMPTS_SCHEMA = WithJsonSchema(
    {
        "anyOf": [
            _TEXT,
            {"type": "array", "items": _TEXT, "minItems": 1},
            _IDS,
            {"type": "array", "items": _IDS, "minItems": 1},
        ]
    }
)
Prompts = Annotated[Any, BeforeValidator(_prompts(LIMITS.prompts)), _PROMPTS_SCHEMA]
Inputs = Annotated[Any, BeforeValidator(_prompts(LIMITS.inputs)), _PROMPTS_SCHEMA]  # to embed


class CompletionRequest(CompletionParameters, StreamFields):
    """Body of a completion."""

    prompt: Prompts = Field(description="a text, token ids, or a list of either; each gets n choices")
    max_tokens: int | None = parameter_field("max_tokens", default=DEFAULT_MAX_TOKENS)
    logprobs: int | None = parameter_field("logprobs", maximum=MAX_LOGPROBS)
    echo: bool | None = parameter_field("echo")
    best_of: int | None = parameter_field("best_of")
    return_tokens_as_token_ids: bool | None = parameter_field("return_tokens_as_token_ids")
    priority: PriorityField = parameter_field("priority", default="interactive")

    def to_requests(self, tenant: str) -> list[Request]:
        """Return a draft for each prompt. Raise InvalidRequest if fields contradict each other."""
        self._check_best_of()
        if self.logprobs is not None:
            BY_NAME["logprobs"].check_range(self.logprobs, MAX_LOGPROBS)
        base, options = self.to_params(), self.to_prompt_options()
        ranked = self.best_of is not None and self.best_of > self.returned
        echo = bool(self.echo)
        return [
            Request(
                id="",
                model=self.model,
                prompt=prompt,
                params=msgspec.structs.replace(
                    base,
                    max_tokens=DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
                    n=self.best_of or self.returned,
                    logprobs=0 if ranked and self.logprobs is None else self.logprobs,
                    echo=echo and (self.logprobs is not None or not isinstance(prompt, str)),
                ),
                prompt_options=options,
                cache_salt=self.cache_salt or "",
                priority=priority_class(self.priority, PriorityClass.INTERACTIVE),
                tenant=tenant,
                user=self.user or "",
            )
            for prompt in self.prompt
        ]

    @property
    def returned(self) -> int:
        """The number of choices that the answer has for each prompt."""
        return 1 if self.n is None else self.n

    def _check_best_of(self) -> None:
        """Raise InvalidRequest if `best_of` contradicts `n` or the stream."""
        if self.best_of is None:
            return
        BY_NAME["n"].check_range(self.returned)
        if self.best_of < self.returned:
            raise InvalidRequest(
                f"best_of must be at least n, {self.returned}, got {self.best_of}", param="best_of"
            )
        if self.stream and self.best_of > self.returned:
            raise InvalidRequest("best_of above n cannot be streamed", param="best_of")


def join_text(tokens: Iterable[Token]) -> str:
    return "".join([token.text for token in tokens])


class TextChoice(msgspec.Struct):
    index: int
    text: str
    finish_reason: WireFinishReason | None
    logprobs: TextLogprobs | None = None
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET
    stop_reason: ShownStopReason = msgspec.UNSET


class Completion(msgspec.Struct):
    """A completion, or a chunk of one; `finish_reason` is null in all chunks of a choice but the last."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: str | None = None
