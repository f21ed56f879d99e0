"""Errors as exceptions of the SDK's classes, with a code, on every route that can fail in that way."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from shared.backend import Backend
from shared.errors import EngineFailed
from shared.protocol import ErrorInfo, RequestState
from shared.settings import Settings
from shared.token_log.interface import OVERDUE
from tests.support.api_server import serving
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "hi"}


@pytest.fixture
async def worker(backend: Backend) -> ScriptedWorker:
    scripted = ScriptedWorker(backend)
    await scripted.announce()
    return scripted


def client(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def calls(sdk: AsyncOpenAI, **fields: Any) -> list[Any]:
    """Return a coroutine for each way to request text."""
    return [
        sdk.chat.completions.create(**CHAT | fields),
        sdk.chat.completions.create(**CHAT | fields, stream=True),
        sdk.completions.create(**TEXT | fields),
        sdk.completions.create(**TEXT | fields, stream=True),
    ]


async def test_errors_of_the_request(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """400, 404 and 422 for invalid requests."""
    async with serving(settings, backend) as url, client(url) as sdk:
        for call in calls(sdk, temperature=-1):
            with pytest.raises(openai.BadRequestError) as bad:
                await call
            assert (bad.value.param, bad.value.code) == ("temperature", "invalid_request")
            assert bad.value.request_id
        for call in [*calls(sdk, model="none"), sdk.embeddings.create(model="none", input="x")]:
            with pytest.raises(openai.NotFoundError) as missing:
                await call
            assert missing.value.code == "model_not_found"
        for call in (sdk.models.retrieve("none"), sdk.files.retrieve("none"), sdk.batches.retrieve("none")):
            with pytest.raises(openai.NotFoundError):
                await call
        keyed = {"extra_headers": {"idempotency-key": "k"}}
        asked = asyncio.create_task(sdk.chat.completions.create(**CHAT, **keyed))
        await worker.answer("x")
        await asked
        for call in calls(sdk, **keyed, seed=1):
            with pytest.raises(openai.UnprocessableEntityError) as reused:
                await call
            assert reused.value.code == "idempotency_key_reused"


async def test_errors_during_an_answer(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """409 for a cancelled request, 500 for a failure of the engine, 504 for a missed deadline."""
    async with serving(settings, backend) as url, client(url) as sdk:
        for call in calls(sdk):
            asked = asyncio.create_task(call)
            await backend.token_log.close((await worker.take()).request.id)
            with pytest.raises(openai.ConflictError):
                await asked
        for call in calls(sdk):
            asked = asyncio.create_task(call)
            await (await worker.take()).end(RequestState.FAILED, ErrorInfo.from_error(EngineFailed("it failed")))
            with pytest.raises(openai.InternalServerError, match="it failed") as failed:
                await asked
            assert (failed.value.status_code, failed.value.code) == (500, "engine_failed")
        for call in calls(sdk, extra_body={"timeout": 50}):
            asked = asyncio.create_task(call)
            await backend.token_log.close((await worker.take()).request.id, OVERDUE)
            with pytest.raises(openai.InternalServerError) as late:
                await asked
            assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")


async def test_errors_of_full_queues(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """429 if the tenant's share of the queue is full, 503 if the queue is full, each with a Retry-After."""
    for bound, kind, code in (
        ("tenant_queue_depth", openai.RateLimitError, "tenant_queue_full"),
        ("queue_depth", openai.InternalServerError, "queue_full"),
    ):
        tight = settings.model_copy(update={bound: 1})
        small = Backend.open(tight)
        async with (
            serving(tight, small) as url,
            client(url) as sdk,
            httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http,
        ):
            job = (await http.post("/v1/jobs", json=TEXT)).json()
            for call in calls(sdk):
                with pytest.raises(kind) as full:
                    await call
                assert full.value.code == code
                assert int(full.value.response.headers["retry-after"]) >= 1
            await http.delete(job["links"]["self"])
        await small.close()
