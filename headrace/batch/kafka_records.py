"""A line of input as a request's record, and a result as what the line's API would have answered."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.batch.input_file import CHAT, Line
from shared.errors import HeadraceError, InvalidRequest, error_classes
from shared.kafka import topics
from shared.kafka.message import KafkaRequest, Outgoing, Record, request_record
from shared.schemas.common_fields import Usage
from shared.schemas.native.jobs import Job
from shared.schemas.native.jobs import Logprobs as JobLogprobs
from shared.schemas.openai.chat import (
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    Logprobs,
    TokenLogprob,
    TopLogprob,
)
from shared.schemas.parsing import validate

SOURCE = "/headrace/cli"
# fields that a job has as a chat completion has them
SHARED = {"messages", "response_format", "structured_outputs", "tools", "tool_choice", "parallel_tool_calls"}


def record_of(line: Line, event_id: str, key: str) -> Outgoing:
    """The record that asks for a line. Raises InvalidRequest where no worker would take it."""
    body = _from_chat(line.body) if line.url == CHAT else line.body
    request = validate(msgspec.json.encode(body), KafkaRequest)
    request.to_request(request.tenant)
    return request_record(
        topics.requests(request.model), request, event_id=event_id, source=SOURCE, key=key.encode()
    )


def _from_chat(body: dict[str, Any]) -> dict[str, Any]:
    """A chat completion's body as a job's."""
    chat = validate(msgspec.json.encode(body), ChatRequest)
    request = chat.to_request("default", stream=False)
    params = msgspec.structs.replace(request.params, structured_outputs=None)
    fields: dict[str, Any] = {
        "model": request.model,
        "priority": request.priority.value,
        **chat.model_dump(include=SHARED, exclude_none=True, by_alias=True),
        **msgspec.to_builtins(params),
    }
    optional = {"seed": chat.seed, "timeout": chat.timeout}
    return fields | {name: value for name, value in optional.items() if value is not None}


def completion_of(job: Job) -> dict[str, Any]:
    """A job that has completed, as OpenAI's chat completion."""
    found = ChatCompletion(
        id="chatcmpl-" + job.id.removeprefix("req_"),
        created=int(job.created_at),
        model=job.model,
        choices=[
            Choice(
                choice.index,
                AnswerMessage.of(choice.text, choice.tool_calls or []),
                choice.finish_reason or "stop",
                _logprobs(choice.logprobs),
            )
            for choice in job.choices or ()
        ],
        usage=job.usage or Usage(0, 0, 0),
        system_fingerprint=job.system_fingerprint,
    )
    told: dict[str, Any] = msgspec.to_builtins(found)
    return told


def _logprobs(given: list[JobLogprobs] | msgspec.UnsetType) -> Logprobs | None:
    if given is msgspec.UNSET:
        return None
    return Logprobs(
        [
            TokenLogprob(
                each.text,
                each.logprob,
                list(each.text.encode()),
                [TopLogprob(top.text, top.logprob, list(top.text.encode())) for top in each.top],
            )
            for each in given
        ]
    )


def header(record: Record, name: str) -> str | None:
    """A header, of somebody else's record too: what cannot be read is none."""
    try:
        return record.header(name)
    except HeadraceError:
        return None


def refusal_of(letter: Record) -> HeadraceError:
    """Why a record became a dead letter."""
    kind = error_classes().get(header(letter, "headrace-error-code") or "", InvalidRequest)
    return kind(header(letter, "headrace-error-message") or "refused")
