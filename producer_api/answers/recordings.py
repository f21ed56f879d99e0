"""Recordings of completed jobs."""

from __future__ import annotations

from producer_api.admission.deadline import redis_deadline
from producer_api.schemas.recordings import JobRecording
from producer_api.services import Context
from shared.errors import Conflict, NotFound
from shared.protocol import RequestState
from shared.token_log.answer import read_all


async def find(context: Context, job_id: str, tenant: str) -> JobRecording:
    """Return the recording of a completed job.

    Raises:
        NotFound: the job is unknown or another tenant's, its answer has expired, or its request was not kept.
        Conflict: it has not completed.
        Unavailable: Redis is away.
    """
    record = await context.request_control.record(job_id, tenant)
    if not record.state.terminal:
        raise Conflict(f"the job {job_id} is {record.state.value}: only a completed job has a recording")
    if record.state is not RequestState.COMPLETED:
        raise Conflict(f"the job {job_id} has no whole answer, it ended with {record.finish or record.state.value}")
    answer = await read_all(context.backend.token_log, record.id)
    async with redis_deadline():
        recording = await context.backend.token_log.recording(record.id)
    if recording is None:
        raise NotFound(
            f"the request of the job {job_id} was not kept: only answers in text of workers that report token ids "
            "have recordings, up to the setting recording_bytes"
        )
    return JobRecording.from_recording(record.id, recording, answer)
