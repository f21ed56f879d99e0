"""The native API: submit a job, see it, read its tokens from any point, cancel it. A job goes on without readers.

Cancelling a job that has ended changes nothing and is no error, so that a DELETE may be sent again.
"""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.gateway import Admission
from producer_api.answers import jobs
from producer_api.answers.job_events import EndData, JobFraming, TokensData
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import NATIVE
from producer_api.http.headers import REPLAYED, idempotency_key, resume_point
from producer_api.http.json_body import drafts, json_answer, read_body
from producer_api.http.sse import EventStream
from producer_api.openapi.document import IDEMPOTENCY, RESUMING, parameter
from producer_api.openapi.examples import SERVED_MODEL
from producer_api.schemas.jobs import JobSubmission
from producer_api.services import Context
from shared.schemas.native.jobs import Job
from shared.token_log.answer import nothing_after

AFTER = parameter("after", "query", "the same in the URL; the header counts first", type="integer", minimum=-1)


async def submit(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, JobSubmission)
    key = await idempotency_key(request, tenant=caller.tenant, kind=jobs.KIND, body=body)
    [draft] = await drafts(request, lambda: [body.to_request(caller.tenant)])
    return await accepted(context, request, await jobs.submit(context, body, draft, caller, key))


async def see(context: Context, job_id: str, tenant: str) -> Response:
    return json_answer(await jobs.see(context, job_id, tenant))


async def cancel(context: Context, job_id: str, tenant: str) -> Response:
    return json_answer(await jobs.cancel(context, job_id, tenant))


async def events(context: Context, request: Request, job_id: str, tenant: str) -> Response:
    after = resume_point(request)
    record = await context.admitted.record(job_id, tenant)
    if nothing_after(record, after):
        return Response(status_code=204)
    followed = context.backend.token_log.follow(job_id, after, idle=context.settings.keepalive)
    return EventStream(followed, JobFraming(), context.attendance, eager=True, abandon=None)


async def accepted(context: Context, request: Request, admission: Admission) -> Response:
    """202 with the job that was made, or that its key stands for already."""
    context.note(request.state.facts, admission.request)
    return told(await jobs.admitted(context, admission), joined=admission.joined)


def told(job: Job, *, joined: bool) -> Response:
    """202 with a job; `joined`: it came before, under the same key."""
    return json_answer(job, 202, {"location": job.links.self, **(REPLAYED if joined else {})})


_endpoint = partial(Endpoint, group="jobs", errors=NATIVE, tag="Jobs")
ENDPOINTS = (
    _endpoint(
        "POST",
        "/v1/jobs",
        submit,
        charged=True,
        summary="Submit a job",
        body=JobSubmission,
        parameters=[IDEMPOTENCY],
        responses=(ResponseDoc("the job, queued; as it stands, if its key came before", Job, status=202),),
        failures=(400, 404, 413, 415, 422, 429, 500, 503),
        examples={
            "A job": {"model": SERVED_MODEL, "prompt": "Rivers are", "max_tokens": 32},
            "A chat, urgent": {
                "model": SERVED_MODEL,
                "messages": [{"role": "user", "content": "What is the capital of France?"}],
                "max_tokens": 64,
                "priority": "interactive",
            },
        },
    ),
    _endpoint(
        "GET",
        "/v1/jobs/{job_id}",
        see,
        summary="See a job",
        responses=(ResponseDoc("the job as it stands", Job),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "DELETE",
        "/v1/jobs/{job_id}",
        cancel,
        summary="Cancel a job",
        responses=(ResponseDoc("the job, ended", Job),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "GET",
        "/v1/jobs/{job_id}/events",
        events,
        summary="Read a job's tokens as they come",
        parameters=[RESUMING, AFTER],
        responses=(
            ResponseDoc(
                "events token, then done, error or cancelled; interrupted asks to connect again",
                events=(TokensData, EndData),
            ),
            ResponseDoc("nothing comes after `after`: the job has ended", status=204),
        ),
        failures=(400, 404, 500, 503),
    ),
)
