"""Fields of all requests for the work of models that do not generate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from shared.protocol import EncoderWork, PriorityClass, PromptOptions, Request
from shared.schemas.base import refuse_unless_neutral
from shared.schemas.common_fields import ParameterFields, PriorityField, priority_class
from shared.schemas.neutral_fields import NOT_SUPPORTED, RequestIdField, Unsupported, Unused
from shared.schemas.parameter_fields import ModelName, parameter_field

MAX_INPUTS = 32  # in one queued request, so that workers share the inputs of a call, and results stay small

Item = TypeVar("Item")


def shares(inputs: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    """Cut the inputs of a call into those of its queued requests, in order."""
    return (tuple(inputs[first : first + MAX_INPUTS]) for first in range(0, len(inputs), MAX_INPUTS))


class EncoderFields(ParameterFields, RequestIdField):
    """Fields of a model, its queue and the encoding of texts."""

    model: ModelName = ""
    truncate_prompt_tokens: int | None = parameter_field("truncate_prompt_tokens")
    truncation_side: str | None = parameter_field("truncation_side", default="right")
    priority: PriorityField = parameter_field("priority", default="interactive")
    timeout: float | None = parameter_field("timeout")
    user: Unused = None
    cache_salt: Unused = None
    padding: Unsupported = None
    mm_processor_kwargs: Unsupported = None

    _refuse_padding = refuse_unless_neutral(
        {"padding": (None, "do_not_pad"), "mm_processor_kwargs": (None, {})}, NOT_SUPPORTED
    )

    @abstractmethod
    def to_requests(self, tenant: str) -> list[Request]:
        """Return drafts that share the work, in order. Raise InvalidRequest if fields contradict each other."""

    def to_prompt_options(self) -> PromptOptions:
        """Return the options of a text's encoding. Tokenizers of encoders cut texts on the right."""
        options = super().to_prompt_options()
        if self.truncate_prompt_tokens is None or self.truncation_side is not None:
            return options
        return msgspec.structs.replace(options, truncation_side="right")

    def drafts(self, works: Iterable[EncoderWork], tenant: str) -> list[Request]:
        """Return a draft for each work."""
        options = self.to_prompt_options()
        priority = priority_class(self.priority, PriorityClass.INTERACTIVE)
        return [
            Request(id="", model=self.model, work=work, prompt_options=options, priority=priority, tenant=tenant)
            for work in works
        ]
