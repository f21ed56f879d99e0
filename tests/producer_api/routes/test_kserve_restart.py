"""Inference while the only worker of a repository restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fastapi import FastAPI

from producer_api.app import create_app
from shared.backend import Backend
from tests.support.api_server import calling
from tests.support.tensor_api import in_memory
from tests.support.tensor_worker import TensorWorker, working
from tests.support.waiting import LIMIT_S

PATH = "/v2/models/identity_int32"
BODY = {"inputs": [{"name": "IN", "shape": [1], "datatype": "INT32", "data": [7]}]}


async def leave(app: FastAPI, worker: TensorWorker) -> None:
    """Let the heartbeats of the worker end, and the API see it."""
    await worker.backend.repository.report("w1", [])
    for each in await worker.backend.registry.workers():
        await worker.backend.registry.leave(each.id)
    app.state.context.catalog.forget_snapshot()


async def test_requests_wait_for_the_next_worker(tmp_path: Path) -> None:
    settings = in_memory(tmp_path)
    backend = Backend.memory(settings)
    app = create_app(settings, backend)
    async with calling(app) as client:
        async with working(backend) as worker:
            assert (await client.post(f"{PATH}/infer", json=BODY)).status_code == 200
        await leave(app, worker)
        for path in ("ready", "versions/1/ready"):
            assert (await client.get(f"{PATH}/{path}")).status_code == 503
        waiting = asyncio.create_task(client.post(f"{PATH}/versions/1/infer", json=BODY))
        async with asyncio.timeout(LIMIT_S):
            while not (await backend.transport.depth("identity_int32")).waiting:
                await asyncio.sleep(0.01)
            async with working(backend):
                found = await waiting
    assert found.json()["outputs"][0]["data"] == [7]
    await app.state.context.close()


async def test_a_worker_that_does_not_return_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = in_memory(tmp_path)
    backend = Backend.memory(settings)
    app = create_app(settings, backend)
    async with calling(app) as client:
        async with working(backend) as worker:
            assert (await client.get(f"{PATH}/ready")).status_code == 200
        monkeypatch.setattr("producer_api.admission.model_catalog.RESTART_LIMIT_S", -1.0)
        await leave(app, worker)
        assert (await client.get(f"{PATH}/ready")).status_code == 404
    await app.state.context.close()
