"""A request body of one API, read without an HTTP request around it: a line of a batch, or a Celery task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from producer_api.admission.model_catalog import under_name
from shared.errors import InvalidRequest
from shared.protocol import PriorityClass, Request
from shared.token_log.answer import Answer


@dataclass(frozen=True)
class ParsedBody:
    """Drafts of requests; several where the body has several prompts or inputs.

    Attributes:
        seed, timeout: the body's, None where it has none.
        word: makes the API's object from their answer and their model's fingerprint; raises the error of a request.
        classed: the body names its priority class.
        ignored: its unknown fields, as the header that reports them has them.
        named: returns an error about the drafts with the names that the body has for its fields.
    """

    drafts: tuple[Request, ...]
    seed: int | None
    timeout: float | None
    word: Callable[[Sequence[Request], Answer, str | None], Any]
    classed: bool
    ignored: str = ""
    named: Callable[[InvalidRequest], InvalidRequest] = lambda error: error

    def in_class(self, priority: PriorityClass) -> ParsedBody:
        return replace(self, drafts=tuple(msgspec.structs.replace(each, priority=priority) for each in self.drafts))

    def until(self, deadline: float) -> ParsedBody:
        return replace(self, drafts=tuple(msgspec.structs.replace(each, deadline=deadline) for each in self.drafts))

    def for_model(self, model: str | None) -> ParsedBody:
        """Return the body for `model`; as it is for None."""
        return replace(self, drafts=under_name(self.drafts, model))


class BodyReader(Protocol):
    """Reads a body of `tenant`."""

    def __call__(self, data: bytes, tenant: str, *, strict_fields: bool) -> ParsedBody:
        """Raises InvalidRequest, also for unknown fields if `strict_fields`; MalformedBody."""


def refuse_stream(stream: bool | None) -> None:
    """Raises InvalidRequest."""
    if stream:
        raise InvalidRequest("stream must be false: this answer cannot be streamed", param="stream")
