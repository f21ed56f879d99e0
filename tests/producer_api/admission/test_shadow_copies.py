"""Shadow copies: sent again to another model, never charged, and compared with their originals."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import httpx
import pytest
from fastapi import FastAPI

from producer_api.admission import shadow_copies
from producer_api.admission.idempotency import derived_id
from producer_api.admission.shadow_copies import SHADOW_NUMBER, SHADOW_TENANT
from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.protocol import (
    ErrorInfo,
    FinishReason,
    Infer,
    PriorityClass,
    Request,
    RequestState,
    SequenceStep,
    Tensor,
    Token,
)
from shared.queue.interface import Delivery, Room
from shared.repository.traffic.pairs import Pair, summarize
from shared.repository.traffic.rules import Shadow
from shared.settings import Settings
from tests.support.fakes import MODEL
from tests.support.metered import changed
from tests.support.scripted_worker import Job, ScriptedWorker
from tests.support.waiting import LIMIT_S

OTHER = "other"
SHADOW_DEPTH = 8


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return changed(settings, tenant_queue_depth=SHADOW_DEPTH)


@pytest.fixture(autouse=True)
async def quick(backend: Backend) -> None:
    with patch.object(shadow_copies, "POLL_S", 0.01):
        await backend.registry.beat(WorkerInfo(id="w2", pid=1, model=OTHER, state="ready", max_model_len=64))
        await backend.traffic.set_shadow(Shadow(name=MODEL, model=OTHER))
        yield


async def take(backend: Backend) -> Job:
    """Take the copy that waits for the other model."""
    async with asyncio.timeout(LIMIT_S):
        while not (found := (await backend.transport.pull(OTHER, "w2", Room.all(1))).found):
            await asyncio.sleep(0.01)
    [delivery] = found
    assert isinstance(delivery, Delivery)
    [lease] = await backend.token_log.acquire([delivery.request.id], "w2")
    assert lease is not None
    return Job(backend, delivery, lease)


async def recorded(backend: Backend) -> list[Pair]:
    async with asyncio.timeout(LIMIT_S):
        while not (found := await backend.traffic.pairs(MODEL)):
            await asyncio.sleep(0.01)
    return found


async def finish(job: Job, *texts: str) -> None:
    for i, text in enumerate(texts):
        await job.write(Token(0, i, text, FinishReason.STOP if i == len(texts) - 1 else None))
    await job.end()


async def submit(client: httpx.AsyncClient, **fields: object) -> str:
    made = await client.post("/v1/jobs", json={"model": MODEL, "prompt": "x", "user": "u", **fields})
    assert made.status_code == 202
    return made.json()["id"]


@pytest.mark.parametrize(("texts", "exact"), [(("a", "b"), True), (("ab",), True), (("c",), False)])
async def test_copy_is_compared_with_its_original(
    client: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend, texts: tuple[str, ...], exact: bool
) -> None:
    job_id = await submit(client)
    await worker.answer("a", "b")
    copy = await take(backend)
    assert copy.request.id != job_id
    assert (copy.request.priority, copy.request.tenant) == (PriorityClass.BATCH, SHADOW_TENANT)
    assert (copy.request.prompt, copy.request.user) == ("x", "")
    await finish(copy, *texts)
    [pair] = await recorded(backend)
    assert pair.agreement is not None
    assert pair.agreement.exact is exact
    assert (pair.original.model, pair.shadow.model) == (MODEL, OTHER)
    assert pair.original.run_s is not None and pair.shadow.run_s is not None
    assert summarize(MODEL, [pair]).compared == 1


async def test_failed_copy_is_counted(client: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend) -> None:
    await submit(client)
    await worker.answer("a")
    await (await take(backend)).end(RequestState.FAILED, ErrorInfo("engine_failed", "x"))
    [pair] = await recorded(backend)
    assert (pair.agreement, pair.shadow.error) == (None, "engine_failed")


async def test_copy_belongs_to_nobody(client: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend) -> None:
    await submit(client)
    copy = await take(backend)
    assert (await client.get(f"/v1/jobs/{copy.request.id}")).status_code == 404


async def test_copy_without_room_is_dropped(app: FastAPI, client: httpx.AsyncClient, backend: Backend) -> None:
    for number in range(SHADOW_DEPTH):
        waits = Request(id=f"req_{number}", model=OTHER, prompt="x", tenant=SHADOW_TENANT)
        await backend.transport.publish(waits)
    job_id = await submit(client)
    await app.state.context.shadow_copies.started()
    assert (await backend.transport.depth(OTHER)).waiting == SHADOW_DEPTH
    assert (await backend.transport.depth(MODEL)).waiting == 1
    assert await backend.token_log.record(derived_id(job_id, SHADOW_NUMBER)) is None


async def test_step_of_a_sequence_is_not_copied(app: FastAPI, backend: Backend) -> None:
    await backend.registry.beat(WorkerInfo(id="w3", pid=1, model="tensors", state="ready", task="predict"))
    copies = app.state.context.shadow_copies
    inputs = (Tensor("x", "INT8", (1,), b"\1"),)
    for sequence, copied in ((SequenceStep(1, start=True), 0), (None, 1)):
        work = Infer(inputs=inputs, sequence=sequence)
        copies.start(Request(id="req_1", model=MODEL, work=work), Shadow(name=MODEL, model="tensors"))
        await copies.started()
        assert (await backend.transport.depth("tensors")).waiting == copied


async def test_number_of_copies_is_bounded(app: FastAPI, client: httpx.AsyncClient, backend: Backend) -> None:
    with patch.object(shadow_copies, "MAX_OPEN", 2):
        for _ in range(4):
            await submit(client)
            await app.state.context.shadow_copies.started()
    assert (await backend.transport.depth(OTHER)).waiting == 2
    assert (await backend.transport.depth(MODEL)).waiting == 4


async def test_joined_request_is_not_copied_again(
    app: FastAPI, client: httpx.AsyncClient, backend: Backend
) -> None:
    sent = {"json": {"model": MODEL, "prompt": "x"}, "headers": {"idempotency-key": "k"}}
    assert (await client.post("/v1/jobs", **sent)).status_code == 202
    await finish(await take(backend), "a")
    assert (await client.post("/v1/jobs", **sent)).status_code == 202
    await app.state.context.shadow_copies.started()
    assert (await backend.transport.depth(OTHER)).waiting == 0
