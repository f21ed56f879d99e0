"""The native API: submit a job, see it, read its tokens from any point, cancel it. A job goes on without readers.

Cancelling a job that has ended changes nothing and is no error, so that a DELETE may be sent again.
"""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.answer import read_all
from producer_api.body import read_body
from producer_api.context import TENANT, Context
from producer_api.openapi import body_of, failures, query, sse_response, struct_response
from producer_api.schemas.chat import Usage
from producer_api.schemas.jobs import Job, JobChoice, JobRequest, Links
from producer_api.sse import EventStream
from shared.delivery.base import RequestRecord
from shared.errors import HeadraceError, InvalidRequest
from shared.protocol import ErrorInfo, RequestState, TokenEvent

MOST_SEQ = 2**53  # beyond it a browser could not count
ENDINGS = {RequestState.COMPLETED: b"done", RequestState.FAILED: b"error", RequestState.CANCELLED: b"cancelled"}
RETRY = b"retry: 1000\n"
AFTER = query("after", "the seq of the last token seen; the header Last-Event-ID says the same, and counts first")


def jobs_router(context: Context) -> APIRouter:
    router = APIRouter(prefix="/v1/jobs", tags=["Jobs"])

    @router.post(
        "",
        status_code=202,
        summary="Submit a job",
        openapi_extra=body_of(JobRequest),
        responses={
            **failures("problem", 400, 404, 413, 415, 500, 503),
            202: struct_response("the job, queued", Job),
        },
    )
    async def submit(request: Request) -> Response:
        body = await read_body(request, JobRequest)
        admitted = await context.gateway.submit(body.to_request(TENANT), seed=body.seed)
        context.note(request, admitted)
        job = Job(
            id=admitted.id,
            model=admitted.model,
            priority=admitted.priority.value,
            state="queued",
            created_at=admitted.created_at,
            links=Links.of(admitted.id),
        )
        return _json(job, 202, {"location": job.links.self})

    @router.get(
        "/{job_id}",
        summary="See a job",
        responses={**failures("problem", 404, 500, 503), 200: struct_response("the job as it stands", Job)},
    )
    async def see(job_id: str) -> Response:
        return _json(await _describe(context, await context.gateway.record(job_id, TENANT)))

    @router.delete(
        "/{job_id}",
        summary="Cancel a job",
        responses={**failures("problem", 404, 500, 503), 200: struct_response("the job, ended", Job)},
    )
    async def cancel(job_id: str) -> Response:
        await context.gateway.record(job_id, TENANT)
        await context.gateway.cancel(job_id)
        return _json(await _describe(context, await context.gateway.record(job_id, TENANT)))

    @router.get(
        "/{job_id}/events",
        summary="Read a job's tokens as they come",
        openapi_extra=AFTER,
        responses={
            **failures("problem", 400, 404, 500, 503),
            **sse_response("events token, then done, error or cancelled; interrupted asks to connect again", None),
            204: {"description": "nothing comes after `after`: the job has ended"},
        },
    )
    async def events(request: Request, job_id: str) -> Response:
        after = resume_point(request)
        record = await context.gateway.record(job_id, TENANT)
        if record.state.terminal and after >= record.completion_tokens:  # the seq of the end
            return Response(status_code=204)
        followed = context.backend.token_log.follow(job_id, after, idle=context.settings.keepalive)
        return EventStream(followed, JobFraming(), context.attendance, eager=True, abandon=_leave_running)

    return router


def _leave_running() -> None:
    """A job goes on when its reader leaves."""


def resume_point(request: Request) -> int:
    """The last seq that the client has, -1 for none. Raises InvalidRequest."""
    for name, given in (
        ("Last-Event-ID", request.headers.get("last-event-id")),
        ("after", request.query_params.get("after")),
    ):
        if given is not None:
            digits = given.removeprefix("-")
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 16 and -1 <= int(given) <= MOST_SEQ):
                raise InvalidRequest(f"{name} must be the seq of a token, or -1 for the start", param=name)
            return int(given)
    return -1


async def _describe(context: Context, record: RequestRecord) -> Job:
    usage = Usage(record.prompt_tokens, record.completion_tokens, record.prompt_tokens + record.completion_tokens)
    outlook = await context.gateway.outlook(record)
    job = Job(
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
        usage=usage if record.started_at is not None else None,
        links=Links.of(record.id),
    )
    if record.state.terminal:
        answer = await read_all(context.backend.token_log, record.id)
        job.choices = [
            JobChoice(index, choice.text, choice.finish_reason and choice.finish_reason.value)
            for index, choice in answer.choices
        ]
        job.error = answer.terminal.error if answer.terminal else None
    return job


def _json(job: Job, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(job), status, headers, media_type="application/json")


class EventToken(msgspec.Struct, omit_defaults=True):
    """One token: its id in the vocabulary and the text it added."""

    choice: int
    id: int
    text: str
    finish_reason: str | None = None


class TokensData(msgspec.Struct):
    """Data of a `token` event: tokens seq, seq + 1, …"""

    seq: int
    tokens: list[EventToken]


class EndData(msgspec.Struct, omit_defaults=True):
    """Data of the last event."""

    seq: int
    state: str
    usage: Usage
    error: ErrorInfo | None = None


class JobFraming:
    """One `token` event per append, its id the last seq; then one that tells the end."""

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode

    def event(self, event: TokenEvent) -> bytes:
        frame = b""
        if event.tokens:
            data = TokensData(
                event.seq, [EventToken(t.choice, t.id, t.text, t.finish_reason) for t in event.tokens]
            )
            last = event.seq + len(event.tokens) - 1
            frame = b"id: %d\nevent: token\ndata: %b\n\n" % (last, self._encode(data))
        if (end := event.terminal) is not None:
            spent = end.usage
            usage = Usage(
                spent.prompt_tokens, spent.completion_tokens, spent.prompt_tokens + spent.completion_tokens
            )
            told = self._encode(EndData(event.last_seq, end.state.value, usage, end.error))
            frame += b"id: %d\nevent: %b\ndata: %b\n\n" % (event.last_seq, ENDINGS[end.state], told)
        return frame

    def interruption(self, error: HeadraceError) -> bytes:
        return RETRY + b"event: interrupted\ndata: %b\n\n" % self._encode(ErrorInfo.of(error))
