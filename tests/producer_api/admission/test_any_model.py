"""One served model that answers to any name, over every transport of the front end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest

from producer_api.app import create_app
from producer_api.rpc import inference_pb2 as pb
from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.settings import Settings
from tests.support.api_server import calling
from tests.support.fakes import MODEL
from tests.support.grpc_client import serving
from tests.support.metered import changed
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
BODIES = (
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", {"prompt": "hi"}),
    ("/v1/responses", {"input": "hi"}),
)


@pytest.fixture
async def any_name(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(changed(settings, any_model_name=True), backend)
    async with calling(app) as opened:
        yield opened
    await app.state.context.close()


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("given", [{}, {"model": None}, {"model": "dummy"}, {"model": "gpt-4o: [best]"}])
async def test_the_answer_names_the_served_model(
    any_name: httpx.AsyncClient, worker: ScriptedWorker, path: str, body: dict[str, Any], given: dict[str, Any]
) -> None:
    asked = asyncio.create_task(any_name.post(path, json={**body, **given}))
    assert (await worker.answer("x")).model == MODEL
    assert (await asked).json()["model"] == MODEL


async def test_a_job_by_grpc_may_name_any_model(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with serving(changed(settings, any_model_name=True), backend) as (_, client):
        for name in ("", "dummy"):
            job = await client.Submit(pb.JobRequest(model=name, prompt="hi"))
            assert job.model == MODEL
            await worker.answer("x")


async def test_a_job_by_grpc_needs_a_model(settings: Settings, backend: Backend) -> None:
    async with serving(settings, backend) as (_, client):
        with pytest.raises(grpc.aio.AioRpcError, match="model is required"):
            await client.Submit(pb.JobRequest(prompt="hi"))


@pytest.mark.parametrize(
    ("path", "body"), [*BODIES, ("/v1/jobs", {"prompt": "hi"}), ("/v1/embeddings", {"input": "x"})]
)
async def test_without_the_setting_a_name_is_required(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    for given, status in (({}, 400), ({"model": ""}, 400), ({"model": "gpt-4o"}, 404)):
        refused = await client.post(path, json={**body, **given})
        assert refused.status_code == status
        error = refused.json() if path == "/v1/jobs" else refused.json()["error"]
        assert error["param"] == "model"


async def test_while_several_models_are_served_each_has_its_name(
    any_name: httpx.AsyncClient, backend: Backend
) -> None:
    await backend.registry.beat(WorkerInfo(id="w2", pid=2, model="second", state="ready", max_model_len=9))
    async with asyncio.timeout(LIMIT_S):  # a request that is not refused waits for a worker
        refused = await any_name.post("/v1/chat/completions", json={**CHAT, "model": "gpt-4o"})
    assert refused.status_code == 404
