"""The native API's jobs: what is submitted, and what is told of one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from producer_api.schemas.chat import Usage
from producer_api.schemas.fields import ChatMessage, Priority, SamplingFields, priority_class
from shared.protocol import ErrorInfo, Request


def _prompt(prompt: Any) -> Any:
    """A text, or token ids."""
    if prompt is None or isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(type(token) is int and 0 <= token < 2**31 for token in prompt):
        return tuple(prompt)
    raise PydanticCustomError("prompt", "must be a string or a list of token ids")


Prompt = Annotated[
    Any,
    BeforeValidator(_prompt),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}
    ),
]


class JobRequest(SamplingFields):
    """The body of POST /v1/jobs. Sampling parameters are flat, by the names of a chat completion."""

    model: str
    messages: list[ChatMessage] | None = Field(None, description="a chat; either this or prompt")
    prompt: Prompt = Field(None, description="text or token ids, taken as they are; either this or messages")
    priority: Priority = Field("standard", description="the queue it waits in")

    def to_request(self, tenant: str) -> Request:
        """The draft that admission completes."""
        messages = self.messages
        return Request(
            id="",
            model=self.model,
            messages=None if messages is None else tuple(message.to_message() for message in messages),
            prompt=self.prompt,
            params=self.to_params(),
            priority=priority_class(self.priority),
            tenant=tenant,
        )


class JobChoice(msgspec.Struct):
    index: int
    text: str
    finish_reason: str | None


class Links(msgspec.Struct):
    self: str
    events: str

    @classmethod
    def of(cls, request_id: str) -> Links:
        return cls(f"/v1/jobs/{request_id}", f"/v1/jobs/{request_id}/events")


class Job(msgspec.Struct, kw_only=True):
    """A job as it stands. Times are in seconds since the epoch.

    While it waits, `position` is its place in its queue, from 1, and `estimated_wait` the seconds until its turn by
    the rate of late; both are estimates where several tenants take turns. `choices` and `error` are there once it
    has ended.
    """

    id: str
    object: Literal["job"] = "job"
    model: str
    priority: Priority
    state: Literal["queued", "running", "completed", "failed", "cancelled"]
    position: int | None = None
    estimated_wait: float | None = None
    deadline: float | None = None
    created_at: float
    started_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    usage: Usage | None = None
    choices: list[JobChoice] | None = None
    error: ErrorInfo | None = None
    links: Links
