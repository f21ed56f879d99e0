"""The native API's jobs: what is submitted, and what is told of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.errors import InvalidRequest
from shared.protocol import ErrorInfo, Outlook, Request, Token
from shared.schemas.common_fields import Messages, Priority, Submission, Usage, WireFinishReason, priority_class
from shared.schemas.openai.completions import is_tokens
from shared.schemas.parameter_fields import parameter_field, priority_field
from shared.schemas.tools import AnswerCall, ToolFields, calls_of
from shared.token_log.answer import Answer, Choice
from shared.token_log.interface import RequestRecord
from shared.webhooks.interface import Webhook


def _prompt(prompt: Any) -> Any:
    """A text, or token ids."""
    if prompt is None or isinstance(prompt, str):
        return prompt
    if is_tokens(prompt):
        return tuple(prompt)
    raise PydanticCustomError("prompt", "must be a string or a list of token ids")


Prompt = Annotated[
    Any,
    BeforeValidator(_prompt),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}
    ),
]


class JobRequest(Submission, ToolFields):
    """The body of POST /v1/jobs. Sampling parameters are flat, by the names of a chat completion."""

    messages: Messages | None = Field(None, description="a chat; either this or prompt")
    prompt: Prompt = Field(None, description="text or token ids, taken as they are; either this or messages")
    priority: Priority = priority_field("standard")
    deadline: float | None = parameter_field("deadline")
    logprobs: int | None = parameter_field("logprobs")

    def to_request(self, tenant: str) -> Request:
        """The draft that admission completes. Raises InvalidRequest where fields contradict each other."""
        if self.timeout is not None and self.deadline is not None:
            raise InvalidRequest("timeout and deadline are two ways to say one thing", param="deadline")
        messages = self.messages
        return Request(
            id="",
            model=self.model,
            messages=None if messages is None else tuple(message.to_message() for message in messages),
            prompt=self.prompt,
            params=msgspec.structs.replace(self.to_params(), logprobs=self.logprobs),
            tools=self.to_tools(),
            priority=priority_class(self.priority),
            tenant=tenant,
            user=self.user or "",
            deadline=self.deadline,
        )


class TopToken(msgspec.Struct):
    """One of the likeliest tokens: its id in the vocabulary and its text by itself."""

    id: int
    text: str
    logprob: float


class Logprobs(msgspec.Struct):
    """Natural log-probabilities of one position, before temperature and filters; `text` is the token by itself."""

    text: str
    logprob: float
    top: list[TopToken]

    @classmethod
    def of(cls, token: Token) -> Logprobs | None:
        if (found := token.logprobs) is None:
            return None
        top = [TopToken(token_id, text, logprob) for token_id, logprob, text in found.top]
        return cls(found.piece, found.logprob, top)

    @classmethod
    def all(cls, tokens: Iterable[Token]) -> list[Logprobs] | msgspec.UnsetType:
        """Of those tokens that carry them, if any does."""
        return [found for token in tokens if (found := cls.of(token)) is not None] or msgspec.UNSET


class JobChoice(msgspec.Struct):
    """`logprobs` has one entry for each token, where they were asked for; `tool_calls` what the model called."""

    index: int
    text: str
    finish_reason: WireFinishReason | None
    logprobs: list[Logprobs] | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[AnswerCall] | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, job_id: str, index: int, choice: Choice) -> JobChoice:
        calls = calls_of(choice.tokens, job_id, index)
        return cls(index, choice.text, choice.finish_reason, Logprobs.all(choice.tokens), calls or msgspec.UNSET)


class Links(msgspec.Struct):
    self: str
    events: str

    @classmethod
    def of(cls, job_id: str) -> Links:
        return cls(f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/events")


class WebhookStatus(msgspec.Struct):
    """How the telling of an end goes; `last_status` is the HTTP status of the last attempt, if it had one."""

    state: Literal["waiting", "pending", "delivered", "failed", "skipped"]
    attempts: int
    last_status: int | None
    last_error: str | None
    next_attempt_at: float | None

    @classmethod
    def of(cls, webhook: Webhook) -> WebhookStatus:
        return cls(
            webhook.state.value,
            webhook.attempts,
            webhook.last_status,
            webhook.last_error,
            webhook.next_attempt_at,
        )


class Job(msgspec.Struct, kw_only=True):
    """A job as it stands. Times are in seconds since the epoch.

    While it waits, `position` is its place in its queue, from 1, and `estimated_wait` the seconds until its turn by
    the rate of late; both are estimates where several tenants take turns. `choices`, `error` and
    `system_fingerprint` are there once it has ended.
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
    system_fingerprint: str | None = None
    webhook: WebhookStatus | msgspec.UnsetType = msgspec.UNSET
    links: Links

    @classmethod
    def of(cls, record: RequestRecord, outlook: Outlook | None = None) -> Job:
        """As it stands, without its answer."""
        return cls(
            id=record.id,
            model=record.model,
            priority=record.priority.value,
            state=record.state.value,
            position=outlook.position if outlook else None,
            estimated_wait=outlook.wait if outlook else None,
            deadline=record.deadline,
            created_at=record.created_at,
            started_at=record.started_at,
            first_token_at=record.first_token_at,
            finished_at=record.finished_at,
            usage=None if record.started_at is None else Usage.of(record.prompt_tokens, record.completion_tokens),
            links=Links.of(record.id),
        )

    @classmethod
    def ended(cls, record: RequestRecord, answer: Answer, fingerprint: str | None) -> Job:
        """With its whole answer, and the fingerprint of its model."""
        job = cls.of(record)
        job.system_fingerprint = fingerprint
        job.choices = [JobChoice.of(record.id, index, choice) for index, choice in answer.choices]
        job.error = answer.terminal.error if answer.terminal else None
        return job
