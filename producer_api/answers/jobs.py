"""Operations on jobs, for HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Sequence

from producer_api.admission.gateway import Admission
from producer_api.admission.idempotency import IdempotencyKey, reading_joined
from producer_api.auth.principal import Principal
from producer_api.schemas.jobs import JobSubmission
from producer_api.services import Context
from producer_api.webhooks.subscription import validated_hook, webhook_status
from shared.protocol import Request
from shared.schemas.native.jobs import Job, Links
from shared.token_log.answer import read_all
from shared.token_log.interface import RequestRecord

KIND = "job"  # the API, as an idempotency key has it


def job_key(headers: Sequence[str], caller: Principal, body: JobSubmission) -> IdempotencyKey | None:
    """Return the idempotency key that the client sent with `body`, if any. Raises InvalidRequest."""
    if not headers:
        return None
    return IdempotencyKey.from_header(headers, tenant=caller.tenant, kind=KIND, body=body.model_dump_json())


async def submit(
    context: Context,
    body: JobSubmission,
    draft: Request,
    caller: Principal,
    key: IdempotencyKey | None,
    *,
    resuming: bool = False,
) -> Admission:
    """Submit `draft`, which was made from `body`. Raises as Gateway.submit does."""
    return await context.gateway.submit(
        draft,
        principal=caller,
        seed=body.given_seed,
        timeout_s=body.timeout,
        key=key,
        resuming=resuming,
        hook=validated_hook(context.settings, body.webhook),
    )


async def submitted(context: Context, admission: Admission) -> Job:
    """Return the submitted job, or the existing one of its key. Raises Unavailable."""
    made = admission.request
    if admission.joined:
        with reading_joined():
            return await find(context, made.id, made.tenant)
    return Job(
        id=made.id,
        model=made.named_model,
        priority=made.priority.value,
        state="queued",
        created_at=made.created_at,
        deadline=made.deadline,
        links=Links.from_id(made.id),
    )


async def find(context: Context, job_id: str, tenant: str) -> Job:
    """Return a job. Raises NotFound, Unavailable."""
    return await describe(context, await context.request_control.record(job_id, tenant))


async def cancel(context: Context, job_id: str, tenant: str) -> Job:
    """Cancel a job and return it; one that has ended is unchanged. Raises NotFound, Unavailable."""
    record = await context.request_control.record(job_id, tenant)
    await context.request_control.cancel(record.id)
    return await find(context, record.id, tenant)


async def describe(context: Context, record: RequestRecord) -> Job:
    """Return the job of a record, with its answer once it has ended. Raises Unavailable."""
    if record.state.terminal:
        answer = await read_all(context.backend.token_log, record.id)
        job = Job.ended(record, answer, await context.gateway.fingerprint(record))
    else:
        job = Job.from_record(record, await context.request_control.outlook(record))
    job.webhook = await webhook_status(context, record.id)
    return job
