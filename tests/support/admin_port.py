"""Requests, and a second model, for tests of the admin port."""

from __future__ import annotations

from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from tests.support.fakes import MODEL, make_request, submit

SECRET = "the prompt of another tenant"
QUEUE = f"/admin/queues/{MODEL}"


async def publish(backend: Backend, tenant: str = "default", **fields: object) -> str:
    return (await submit(backend, make_request(SECRET, tenant=tenant, **fields))).job_id


async def other_model(backend: Backend) -> str:
    await backend.registry.beat(WorkerInfo(id="w2", pid=1, model="org/other", state="ready", max_num_seqs=4))
    return "org/other"
