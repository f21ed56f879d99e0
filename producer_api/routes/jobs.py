"""The native API: submit a job, see it, read its tokens from any point, cancel it. A job goes on without readers.

Cancelling a job that has ended changes nothing and is no error, so that a DELETE may be sent again.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.gateway import Admission
from producer_api.answers import jobs
from producer_api.answers.job_events import JobFraming
from producer_api.auth.principal import Caller, Tenant
from producer_api.http.endpoint import Route
from producer_api.http.headers import REPLAYED, idempotency_key, resume_point
from producer_api.http.json_body import drafts, json_answer, read_body
from producer_api.http.sse import EventStream
from producer_api.openapi.document import (
    IDEMPOTENCY,
    RESUMING,
    body_of,
    failures,
    parameter,
    sse_response,
    struct_response,
)
from producer_api.schemas.jobs import JobSubmission
from producer_api.services import Context
from shared.schemas.native.jobs import Job
from shared.token_log.answer import nothing_after

AFTER = parameter("after", "query", "the same in the URL; the header counts first", type="integer", minimum=-1)


def jobs_router(context: Context) -> APIRouter:
    router = APIRouter(route_class=Route, prefix="/v1/jobs", tags=["Jobs"], dependencies=[context.allow("jobs")])

    @router.post(
        "",
        status_code=202,
        summary="Submit a job",
        openapi_extra=body_of(JobSubmission) | {"parameters": [IDEMPOTENCY]},
        responses={
            **failures("problem", 400, 404, 413, 415, 422, 429, 500, 503),
            202: struct_response("the job, queued; as it stands, if its key came before", Job),
        },
    )
    async def submit(request: Request, caller: Caller) -> Response:
        body = await read_body(request, JobSubmission)
        key = await idempotency_key(request, tenant=caller.tenant, kind=jobs.KIND, body=body)
        [draft] = await drafts(request, lambda: [body.to_request(caller.tenant)])
        return await accepted(context, request, await jobs.submit(context, body, draft, caller, key))

    @router.get(
        "/{job_id}",
        summary="See a job",
        responses={**failures("problem", 404, 500, 503), 200: struct_response("the job as it stands", Job)},
    )
    async def see(job_id: str, tenant: Tenant) -> Response:
        return json_answer(await jobs.find(context, job_id, tenant))

    @router.delete(
        "/{job_id}",
        summary="Cancel a job",
        responses={**failures("problem", 404, 500, 503), 200: struct_response("the job, ended", Job)},
    )
    async def cancel(job_id: str, tenant: Tenant) -> Response:
        return json_answer(await jobs.cancel(context, job_id, tenant))

    @router.get(
        "/{job_id}/events",
        summary="Read a job's tokens as they come",
        openapi_extra={"parameters": [RESUMING, AFTER]},
        responses={
            **failures("problem", 400, 404, 500, 503),
            **sse_response("events token, then done, error or cancelled; interrupted asks to connect again", None),
            204: {"description": "nothing comes after `after`: the job has ended"},
        },
    )
    async def events(request: Request, job_id: str, tenant: Tenant) -> Response:
        after = resume_point(request)
        record = await context.request_control.record(job_id, tenant)
        if nothing_after(record, after):
            return Response(status_code=204)
        followed = context.backend.token_log.follow(job_id, after, idle=context.settings.keepalive)
        return EventStream(followed, JobFraming(), context.attendance, eager=True, abandon=None)

    return router


async def accepted(context: Context, request: Request, admission: Admission) -> Response:
    """202 with the job that was made, or that its key stands for already."""
    context.note(request.state.facts, admission.request)
    return told(await jobs.submitted(context, admission), joined=admission.joined)


def told(job: Job, *, joined: bool) -> Response:
    """202 with a job; `joined`: it came before, under the same key."""
    return json_answer(job, 202, {"location": job.links.self, **(REPLAYED if joined else {})})
