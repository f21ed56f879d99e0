"""The native API: submit a job, get it, stream its tokens from any point, cancel it.

A job continues without readers. Cancelling a job that has ended changes nothing and succeeds, so that clients can
retry a DELETE.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.gateway import Admission
from producer_api.answers import jobs, recordings
from producer_api.answers.job_events import EndData, JobFraming, TokensData
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import NATIVE
from producer_api.http.headers import REPLAYED, idempotency_key, resume_point
from producer_api.http.json_body import json_response, make_drafts, read_body
from producer_api.http.sse import EventStream
from producer_api.openapi.examples import SERVED_MODEL
from producer_api.openapi.parameters import IDEMPOTENCY, LAST_EVENT_ID, parameter
from producer_api.schemas.jobs import JobSubmission
from producer_api.schemas.recordings import JobRecording, RecordedRequest
from producer_api.services import Context
from shared.schemas.native.jobs import Job
from shared.timeline.types import Timeline
from shared.token_log.answer import nothing_after

AFTER = parameter("after", "query", "the same in the URL; the header takes precedence", type="integer", minimum=-1)


async def submit(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, JobSubmission)
    key = await idempotency_key(request, tenant=caller.tenant, kind=jobs.KIND, body=body)
    [draft] = await make_drafts(request, lambda: [body.to_request(caller.tenant)])
    return await accepted(context, request, await jobs.submit(context, body, draft, caller, key))


async def see(context: Context, job_id: str, tenant: str) -> Response:
    return json_response(await jobs.find(context, job_id, tenant))


async def timeline(context: Context, job_id: str, owner: str | None, caller: Principal) -> Response:
    found = await context.request_control.timeline(job_id, owner)
    if owner is None:
        caller.check_model(found.model)
    return json_response(found)


async def cancel(context: Context, job_id: str, tenant: str) -> Response:
    return json_response(await jobs.cancel(context, job_id, tenant))


async def events(context: Context, request: Request, job_id: str, tenant: str) -> Response:
    after = resume_point(request)
    record = await context.request_control.record(job_id, tenant)
    if nothing_after(record, after):
        return Response(status_code=204)
    followed = context.backend.token_log.follow(record.id, after, idle=context.settings.keepalive)
    return EventStream(followed, JobFraming(), context.open_answers, eager=True, abandon=None)


async def recording(context: Context, job_id: str, tenant: str) -> Response:
    return json_response(await recordings.find(context, job_id, tenant))


async def run_again(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, RecordedRequest)
    key = await idempotency_key(request, tenant=caller.tenant, kind="recording", body=body)
    [draft] = await make_drafts(request, lambda: [body.to_request(caller.tenant)])
    return await accepted(
        context,
        request,
        await context.gateway.submit(draft, principal=caller, seed=draft.params.seed, key=key),
    )


async def accepted(context: Context, request: Request, admission: Admission) -> Response:
    """Return 202 with the new job, or with the one submitted before under its key."""
    context.note(request.state.facts, admission.request)
    return job_response(await jobs.submitted(context, admission), joined=admission.joined)


def job_response(job: Job, *, joined: bool) -> Response:
    """Return 202 with a job; `joined`: it was submitted before, under the same key."""
    return json_response(job, 202, {"location": job.links.self, **(REPLAYED if joined else {})})


_endpoint = partial(Endpoint, group="jobs", errors=NATIVE, tag="Jobs")
TIMELINE = _endpoint(
    "GET",
    "/v1/jobs/{job_id}/timeline",
    timeline,
    summary="Show where the time of a job went",
    responses=(ResponseDoc("the timeline, up to now if the job is unfinished", Timeline),),
    failures=(404, 500, 503),
)
ENDPOINTS = (
    TIMELINE,
    _endpoint(
        "POST",
        "/v1/jobs",
        submit,
        charged=True,
        summary="Submit a job",
        body=JobSubmission,
        parameters=[IDEMPOTENCY],
        responses=(ResponseDoc("the queued job, or the one submitted before under the key", Job, status=202),),
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
        summary="Get a job",
        responses=(ResponseDoc("the job", Job),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "DELETE",
        "/v1/jobs/{job_id}",
        cancel,
        summary="Cancel a job",
        responses=(ResponseDoc("the job, which has ended", Job),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "GET",
        "/v1/jobs/{job_id}/recording",
        recording,
        summary="Get the request of a completed job with its answer, token by token",
        responses=(ResponseDoc("the recording", JobRecording),),
        failures=(404, 409, 500, 503),
    ),
    _endpoint(
        "POST",
        "/v1/recordings",
        run_again,
        charged=True,
        summary="Run a recorded request again as a new job",
        body=RecordedRequest,
        parameters=[IDEMPOTENCY],
        responses=(ResponseDoc("the queued job, or the one submitted before under the key", Job, status=202),),
        failures=(400, 404, 413, 415, 422, 429, 500, 503),
        examples={
            "A prompt": {
                "request": {"model": SERVED_MODEL, "prompt": "Rivers are", "params": {"max_tokens": 32, "seed": 1}},
                "prompt_token_ids": [68, 1919, 359],
            },
        },
    ),
    _endpoint(
        "GET",
        "/v1/jobs/{job_id}/events",
        events,
        summary="Stream the tokens of a job",
        parameters=[LAST_EVENT_ID, AFTER],
        responses=(
            ResponseDoc(
                "events token, then done, error or cancelled; after interrupted, reconnect",
                events=(TokensData, EndData),
            ),
            ResponseDoc("the job has ended: there is nothing after `after`", status=204),
        ),
        failures=(400, 404, 500, 503),
    ),
)
ADMIN_ENDPOINTS = (replace(TIMELINE, admin=True),)  # of all tenants
