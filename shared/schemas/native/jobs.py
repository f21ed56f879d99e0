"""Jobs of the native API: the body that submits one, and the job that is returned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.errors import InvalidRequest
from shared.protocol import ErrorInfo, Outlook, PriorityClass, Request, Token
from shared.schemas.common_fields import (
    ChatTemplateField,
    Priority,
    PriorityField,
    ShownStopReason,
    Usage,
    WireFinishReason,
    priority_class,
    shown_stop_reason,
)
from shared.schemas.messages import Messages, to_messages
from shared.schemas.openai.completions import is_token_ids
from shared.schemas.openai.logprobs import PromptLogprobs, prompt_logprobs
from shared.schemas.parameter_bodies import JobParameters
from shared.schemas.parameter_fields import parameter_field
from shared.schemas.tools import AnswerCall, ToolFields, collect_calls
from shared.token_log.answer import Answer, Choice
from shared.token_log.interface import RequestRecord
from shared.webhooks.interface import Webhook


def _prompt(prompt: Any) -> Any:
    """Return a text or a tuple of token ids."""
    if prompt is None or isinstance(prompt, str):
        return prompt
    if is_token_ids(prompt):
        return tuple(prompt)
    raise PydanticCustomError("prompt", "must be a string or a list of token ids")


Prompt = Annotated[
    Any,
    BeforeValidator(_prompt),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}
    ),
]


class JobRequest(JobParameters, ChatTemplateField, ToolFields):
    """Body of POST /v1/jobs. Parameters are at the top level, with the names of a chat completion."""

    messages: Messages | None = Field(None, description="a chat; give either messages or prompt")
    prompt: Prompt = Field(
        None, description="text or token ids, used without a chat template; give either prompt or messages"
    )
    priority: PriorityField = parameter_field("priority", default="standard")
    deadline: float | None = parameter_field("deadline")
    logprobs: int | None = parameter_field("logprobs")

    def to_request(self, tenant: str) -> Request:
        """Return the draft that admission completes. Raise InvalidRequest if fields contradict each other."""
        if self.timeout is not None and self.deadline is not None:
            raise InvalidRequest("timeout and deadline must not both be set", param="deadline")
        messages = self.messages
        return Request(
            id="",
            model=self.model,
            messages=None if messages is None else to_messages(messages),
            prompt=self.prompt,
            params=msgspec.structs.replace(self.to_params(), logprobs=self.logprobs),
            prompt_options=self.to_prompt_options(),
            cache_salt=self.cache_salt or "",
            tools=self.to_tools(),
            priority=priority_class(self.priority, PriorityClass.STANDARD),
            tenant=tenant,
            user=self.user or "",
            deadline=self.deadline,
        )


class TopToken(msgspec.Struct):
    """One of the most likely tokens: its id in the vocabulary, and the text of the token alone.

    `bytes` is set where they are not those of the text: parts of a character, and none for a special token.
    """

    id: int
    text: str
    logprob: float
    bytes: list[int] | msgspec.UnsetType = msgspec.UNSET


class Logprobs(msgspec.Struct):
    """Natural log-probabilities of one position, before temperature and filters; `text` is of the token alone.

    `bytes` is set where they are not those of the text: parts of a character, and none for a special token.
    """

    text: str
    logprob: float
    top: list[TopToken]
    bytes: list[int] | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def from_token(cls, token: Token) -> Logprobs | None:
        if (logprobs := token.logprobs) is None:
            return None
        data = {token_id: list(exact) for token_id, exact in logprobs.exact.items()}
        top = [TopToken(each, text, logprob, data.get(each, msgspec.UNSET)) for each, logprob, text in logprobs.top]
        return cls(logprobs.piece, logprobs.logprob, top, data.get(token.id, msgspec.UNSET))

    @classmethod
    def from_tokens(cls, tokens: Iterable[Token]) -> list[Logprobs] | msgspec.UnsetType:
        """Return those of the tokens that have them, UNSET if none has."""
        return [each for token in tokens if (each := cls.from_token(token)) is not None] or msgspec.UNSET


class JobChoice(msgspec.Struct):
    """One choice. `logprobs` has one entry for each token if the request asked for them.

    `token_ids` is set if it asked for token ids or for log-probabilities of its prompt. `stop_reason` is the token
    of `stop_token_ids` or the stop string that ended it.
    """

    index: int
    text: str
    finish_reason: WireFinishReason | None
    logprobs: list[Logprobs] | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[AnswerCall] | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    stop_reason: ShownStopReason = msgspec.UNSET

    @classmethod
    def from_choice(cls, job_id: str, index: int, choice: Choice, *, with_ids: bool) -> JobChoice:
        calls = collect_calls(choice.tokens, job_id, index)
        return cls(
            index,
            choice.text,
            choice.finish_reason,
            Logprobs.from_tokens(choice.tokens),
            calls or msgspec.UNSET,
            choice.reasoning or msgspec.UNSET,
            [token.id for token in choice.tokens] if with_ids else msgspec.UNSET,
            shown_stop_reason(choice.stop_reason),
        )


class JobPrompt(msgspec.Struct, kw_only=True):
    """Token ids of a job's prompt, and their log-probabilities, if the request asked for either."""

    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET

    def add_prompt(self, prompt: Sequence[Token]) -> None:
        """Add what the log has of the prompt."""
        if not prompt:
            return
        self.prompt_token_ids = [token.id for token in prompt]
        if any(token.logprobs is not None for token in prompt):
            self.prompt_logprobs = prompt_logprobs(prompt)


class Links(msgspec.Struct):
    self: str
    events: str

    @classmethod
    def from_id(cls, job_id: str) -> Links:
        return cls(f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/events")


class WebhookStatus(msgspec.Struct):
    """State of a webhook's delivery; `last_status` is the HTTP status of the last attempt, if it got one."""

    state: Literal["waiting", "pending", "delivered", "failed", "skipped"]
    attempts: int
    last_status: int | None
    last_error: str | None
    next_attempt_at: float | None

    @classmethod
    def from_webhook(cls, webhook: Webhook) -> WebhookStatus:
        return cls(
            webhook.state.value,
            webhook.attempts,
            webhook.last_status,
            webhook.last_error,
            webhook.next_attempt_at,
        )


class Job(JobPrompt, kw_only=True):
    """A job in its current state. Times are in seconds since the epoch.

    While it waits, `position` is its place in its queue, from 1, and `estimated_wait` the seconds until its turn at
    the recent rate; both are estimates if several tenants take turns. `choices`, `error` and `system_fingerprint`
    are set once it has ended.
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
    def from_record(
        cls, record: RequestRecord, outlook: Outlook | None = None, *, reasoning_tokens: int = 0
    ) -> Job:
        """Return the job in its current state, without its answer."""
        return cls(
            id=record.id,
            model=record.named_model,
            priority=record.priority.value,
            state=record.state.value,
            position=outlook.position if outlook else None,
            estimated_wait=outlook.wait if outlook else None,
            deadline=record.deadline,
            created_at=record.created_at,
            started_at=record.started_at,
            first_token_at=record.first_token_at,
            finished_at=record.finished_at,
            usage=None
            if record.started_at is None
            else Usage.from_counts(record.prompt_tokens, record.completion_tokens, reasoning_tokens),
            links=Links.from_id(record.id),
        )

    @classmethod
    def ended(cls, record: RequestRecord, answer: Answer, fingerprint: str | None) -> Job:
        """Return the job with its whole answer and the fingerprint of its model."""
        job = cls.from_record(record, reasoning_tokens=answer.reasoning_tokens)
        job.system_fingerprint = fingerprint
        with_ids = bool(answer.prompt)
        job.choices = [
            JobChoice.from_choice(record.id, index, choice, with_ids=with_ids) for index, choice in answer.choices
        ]
        job.add_prompt(answer.prompt)
        if answer.terminal is not None:
            job.usage, job.error = Usage.from_usage(answer.terminal.usage), answer.terminal.error
        return job
