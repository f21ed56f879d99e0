"""Convert an input line to a Kafka record, and a result to the answer that the line's API would have given."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.batch.input_file import CHAT_URL, Line
from shared.error_codes import error_classes
from shared.errors import HeadraceError, InvalidRequest
from shared.kafka import topics
from shared.kafka.message import KafkaRequest, Outgoing, Record, request_record
from shared.protocol import FinishReason, PromptOptions
from shared.schemas.common_fields import Usage
from shared.schemas.native.jobs import Job
from shared.schemas.native.jobs import Logprobs as JobLogprobs
from shared.schemas.openai.chat import AnswerMessage, ChatCompletion, ChatRequest, Choice
from shared.schemas.openai.logprobs import Logprobs, TokenLogprob, top_logprob
from shared.schemas.parsing import validate
from shared.schemas.structured import GUIDED

SOURCE = "/headrace/cli"
SHARED_FIELDS = {  # of chats and jobs, with the same form in both
    *("messages", "response_format", "structured_outputs", "tools", "tool_choice", "parallel_tool_calls"),
    *(f"guided_{kind}" for kind in GUIDED),
    *(*PromptOptions.__struct_fields__, "cache_salt"),
}


def to_kafka_record(line: Line, event_id: str, key: str) -> Outgoing:
    """Return the request record of a line. Raises InvalidRequest if workers would refuse it."""
    body = _job_body_from_chat(line.body) if line.url == CHAT_URL else line.body
    request = validate(msgspec.json.encode(body), KafkaRequest)
    request.to_request(request.tenant)
    return request_record(
        topics.requests(request.model), request, event_id=event_id, source=SOURCE, key=key.encode()
    )


def _job_body_from_chat(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of the job that is equivalent to a chat completion's body."""
    chat = validate(msgspec.json.encode(body), ChatRequest)
    for name in ("return_tokens_as_token_ids", "echo"):
        if getattr(chat, name):
            raise InvalidRequest(f"{name} is not supported over Kafka", param=name)
    request = chat.to_request("default")
    params = msgspec.structs.replace(request.params, structured_outputs=None)
    fields: dict[str, Any] = {
        "model": request.model,
        "priority": request.priority.value,
        **chat.model_dump(include=SHARED_FIELDS, exclude_none=True, by_alias=True),
        **msgspec.to_builtins(params),
    }
    optional = {"seed": chat.given_seed, "timeout": chat.timeout}
    return fields | {name: value for name, value in optional.items() if value is not None}


def to_chat_completion(job: Job) -> dict[str, Any]:
    """Return a completed job as an OpenAI chat completion."""
    completion = ChatCompletion(
        id="chatcmpl-" + job.id.removeprefix("req_"),
        created=int(job.created_at),
        model=job.model,
        choices=[
            Choice(
                choice.index,
                AnswerMessage.from_text(choice.text, choice.reasoning or "", choice.tool_calls or []),
                choice.finish_reason or FinishReason.STOP,
                _logprobs(choice.logprobs),
                token_ids=choice.token_ids,
                stop_reason=choice.stop_reason,
            )
            for choice in job.choices or ()
        ],
        usage=job.usage or Usage(0, 0, 0),
        system_fingerprint=job.system_fingerprint,
        prompt_token_ids=job.prompt_token_ids,
        prompt_logprobs=job.prompt_logprobs,
    )
    body: dict[str, Any] = msgspec.to_builtins(completion)
    return body


def _logprobs(given: list[JobLogprobs] | msgspec.UnsetType) -> Logprobs | None:
    if given is msgspec.UNSET:
        return None
    return Logprobs([_token_logprob(each) for each in given])


def _token_logprob(given: JobLogprobs) -> TokenLogprob:
    top = [top_logprob(each.text, each.logprob, _exact(each.bytes)) for each in given.top]
    own = top_logprob(given.text, given.logprob, _exact(given.bytes))
    return TokenLogprob(own.token, own.logprob, own.bytes, top)


def _exact(given: list[int] | msgspec.UnsetType) -> bytes | None:
    return None if given is msgspec.UNSET else bytes(given)


def readable_header(record: Record, name: str) -> str | None:
    """Return the value of a header; None if it is missing or, in a foreign record, not readable."""
    try:
        return record.header(name)
    except HeadraceError:
        return None


def error_from_dead_letter(letter: Record) -> HeadraceError:
    """Return the error for which a record became a dead letter."""
    kind = error_classes().get(readable_header(letter, "headrace-error-code") or "", InvalidRequest)
    return kind(readable_header(letter, "headrace-error-message") or "refused")
