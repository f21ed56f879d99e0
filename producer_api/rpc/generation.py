"""Jobs that a call submits and waits for: the common part of all methods that generate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from producer_api.admission.gateway import Admission
from producer_api.admission.idempotency import HEADER, IdempotencyKey
from producer_api.admission.model_catalog import under_name
from producer_api.answers import jobs
from producer_api.answers.reply import Reply
from producer_api.http.headers import REPLAYED
from producer_api.http.open_streams import Stopping, shutdown_error
from producer_api.http.sse import Events
from producer_api.observability.request_log import RequestFacts
from producer_api.rpc.call import Call
from producer_api.schemas.jobs import JobSubmission
from producer_api.services import Context
from shared.errors import InvalidRequest, Unavailable
from shared.protocol import Request, Terminal, TokenEvent
from shared.validation.schema_check import not_held

KEY_METADATA = HEADER.lower()  # metadata names are in lower case

Result = TypeVar("Result")


@dataclass(frozen=True)
class SubmittedJob:
    """A job that a call submitted or, with its key, joined. With a key it continues without its caller."""

    admission: Admission
    key: IdempotencyKey | None

    @property
    def detached(self) -> bool:
        return self.key is not None


async def submit(
    context: Context, call: Call, to_body: Callable[[], JobSubmission], *, resuming: bool = False
) -> SubmittedJob:
    """Submit the job of a call's message. Raises InvalidRequest, and as jobs.submit and `to_body`."""
    model = await context.gateway.any_model()

    def read() -> tuple[JobSubmission, Request, IdempotencyKey | None]:
        body = to_body()
        [draft] = under_name([body.to_request(call.caller.tenant)], model)
        context.gateway.check_together([draft])
        return body, draft, jobs.job_key(call.metadata_values(KEY_METADATA), call.caller, body)

    body, draft, key = await call.off_loop(read)
    call.facts.report_not_held(not_held([draft]))
    if resuming and key is None:
        raise InvalidRequest(f"from_seq above 0 needs the {KEY_METADATA} of the first call", param="from_seq")
    admission = await jobs.submit(context, body, draft, call.caller, key, resuming=resuming)
    call.add_metadata(REPLAYED if admission.joined else {})
    return SubmittedJob(admission, key)


@asynccontextmanager
async def replying(context: Context, facts: RequestFacts, job: SubmittedJob) -> AsyncIterator[Reply]:
    """Yield the reply to a request. If the body fails, cancel the job, unless it is detached."""
    reply = Reply(context, facts, job.admission, detached=job.detached)
    try:
        yield reply
    except BaseException:  # also when the client disconnects or the server stops
        if not job.detached:
            reply.abandon()
        raise


async def attend(context: Context, work: Coroutine[Any, Any, Result], *, resumable: bool) -> Result:
    """Return the result of `work`. Raises Unavailable if the server stops."""
    try:
        return await context.open_answers.run(work, None, resumable=resumable)
    except Stopping:
        raise shutdown_error() from None


async def write_events(
    call: Call, events: Events, to_messages: Callable[[TokenEvent], Iterable[Message]]
) -> Terminal:
    """Write the messages of the events at the client's pace and return the end. Raises Unavailable."""
    async with aclosing(events):
        async for event in events:
            for message in to_messages(event) if event is not None else ():
                await call.write(message)
            if event is not None and event.terminal is not None:
                return event.terminal
    raise Unavailable("the stream ended before its answer; resume it", retry_after=0)
