"""What may be done with jobs, by whichever front end asks."""

from __future__ import annotations

from collections.abc import Sequence

from producer_api.admission.gateway import Admission
from producer_api.admission.idempotency import Key
from producer_api.auth.principal import Principal
from producer_api.schemas.jobs import JobSubmission
from producer_api.services import Context
from producer_api.webhooks.subscription import hook_of, webhook_status
from shared.protocol import Request
from shared.schemas.native.jobs import Job, Links
from shared.token_log.answer import read_all
from shared.token_log.interface import RequestRecord

KIND = "job"  # of what an idempotency key stands for


def job_key(given: Sequence[str], caller: Principal, body: JobSubmission) -> Key | None:
    """The key that the client gave for this `body`, None for none. Raises InvalidRequest."""
    if not given:
        return None
    return Key.of(given, tenant=caller.tenant, kind=KIND, body=body.model_dump_json())


async def submit(
    context: Context,
    body: JobSubmission,
    draft: Request,
    caller: Principal,
    key: Key | None,
    *,
    resuming: bool = False,
) -> Admission:
    """As Gateway.submit, which says what it raises; `draft` is made of `body`."""
    return await context.gateway.submit(
        draft,
        principal=caller,
        seed=body.seed,
        within=body.timeout,
        key=key,
        resuming=resuming,
        hook=hook_of(context.settings, body.webhook),
    )


async def admitted(context: Context, admission: Admission) -> Job:
    """The job that was made, or that its key stands for already. Raises Unavailable."""
    made = admission.request
    if admission.joined:
        return await see(context, made.id, made.tenant)
    return Job(
        id=made.id,
        model=made.model,
        priority=made.priority.value,
        state="queued",
        created_at=made.created_at,
        deadline=made.deadline,
        links=Links.from_id(made.id),
    )


async def see(context: Context, job_id: str, tenant: str) -> Job:
    """Raises NotFound, Unavailable."""
    return await describe(context, await context.admitted.record(job_id, tenant))


async def cancel(context: Context, job_id: str, tenant: str) -> Job:
    """The job, ended; one that had ended is as it was. Raises NotFound, Unavailable."""
    await context.admitted.record(job_id, tenant)
    await context.admitted.cancel(job_id)
    return await see(context, job_id, tenant)


async def describe(context: Context, record: RequestRecord) -> Job:
    """As it stands, with its answer once that has ended. Raises Unavailable."""
    if record.state.terminal:
        answer = await read_all(context.backend.token_log, record.id)
        job = Job.ended(record, answer, await context.gateway.fingerprint(record.model))
    else:
        job = Job.from_record(record, await context.admitted.outlook(record))
    job.webhook = await webhook_status(context, record.id)
    return job
