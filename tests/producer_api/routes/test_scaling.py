"""The load of a model on the admin port, and a model that may have no worker."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
from fastapi import FastAPI

from producer_api.admission.scaling import load_of
from producer_api.app import create_app
from producer_api.services import Context
from shared.backend import Backend
from shared.protocol import PriorityClass
from shared.settings import Settings
from tests.support.api_server import administering, calling
from tests.support.fakes import MODEL, make_request, submit
from tests.support.loop_clock import stopped_clock
from tests.support.scripted_worker import ScriptedWorker


async def load(app: FastAPI, model: str = MODEL) -> dict[str, Any]:
    async with administering(app) as admin:
        answer = await admin.get(f"/admin/scaling/{model}")
    assert answer.status_code == 200
    found: dict[str, Any] = json.loads(answer.content, parse_constant=lambda name: math.nan)
    numbers = [found, *found["classes"].values()]
    assert all(
        math.isfinite(value) for each in numbers for value in each.values() if isinstance(value, int | float)
    )
    return found


async def test_the_load_counts_requests_tokens_and_workers(
    app: FastAPI, backend: Backend, worker: ScriptedWorker
) -> None:
    assert (await load(app))["desired_workers"] == 0
    for _ in range(9):
        await submit(backend, make_request(priority=PriorityClass.BATCH))
    await worker.take()
    found = await load(app)
    tokens = (await backend.transport.depth(MODEL)).waiting_tokens
    assert (found["waiting"], found["held"], found["tokens_waiting"]) == (8, 1, tokens)
    assert (found["seats"], found["desired_workers"], found["workers"], found["active"]) == (8, 2, 1, True)
    assert found["wait_estimate"] > 0
    assert (found["classes"]["batch"]["waiting"], found["classes"]["interactive"]["waiting"]) == (8, 0)


async def test_paused_requests_ask_for_no_worker(app: FastAPI, backend: Backend, worker: ScriptedWorker) -> None:
    for tenant in ("a", "a", "b"):
        await submit(backend, make_request(tenant=tenant))
    await worker.take()
    await backend.queues.set_gate(MODEL, "paused", "a")
    found = await load(app)
    assert (found["waiting"], found["paused"], found["held"], found["active"]) == (1, 1, 1, True)
    assert 0 < found["tokens_waiting"] < (await backend.transport.depth(MODEL)).waiting_tokens
    await backend.queues.set_gate(MODEL, "paused")
    found = await load(app)
    assert (found["waiting"], found["paused"], found["held"], found["desired_workers"]) == (0, 2, 1, 1)
    assert (found["tokens_waiting"], found["oldest_age"], found["wait_estimate"]) == (0, 0, 0)


async def test_a_load_is_one_look_at_the_queue(app: FastAPI, backend: Backend) -> None:
    context: Context = app.state.context

    async def scripts() -> int:
        await load_of(backend, context.catalog, MODEL, default_seats=8)
        found: dict[str, dict[str, int]] = await backend.redis.info("commandstats")
        return found["cmdstat_evalsha"]["calls"]

    with stopped_clock():  # so that the catalog is read once
        await scripts()
        assert await scripts() + 1 == await scripts()


async def test_the_load_of_an_unknown_model_is_refused(app: FastAPI, client: httpx.AsyncClient) -> None:
    async with administering(app) as admin:
        refused = await admin.get("/admin/scaling/no-such")
    assert (refused.status_code, refused.json()["code"]) == (404, "model_not_found")
    assert (await client.get(f"/admin/scaling/{MODEL}")).status_code == 404  # not on the API's port


async def test_a_scalable_model_is_ready_and_takes_requests_without_a_worker(
    settings: Settings, backend: Backend
) -> None:
    scalable = settings.model_copy(update={"scalable_models": f"{MODEL},org/large"})
    app = create_app(scalable, backend)
    async with calling(app) as client:
        assert (await client.get("/ready")).status_code == 200
        body = {"model": "org/large", "prompt": "x"}
        assert (await client.post("/v1/jobs", json=body)).status_code == 202
        assert (await client.post("/v1/jobs", json=body | {"model": "org/other"})).status_code == 404
    assert (await load(app, "org/large"))["waiting"] == 1
    async with calling(create_app(settings, backend)) as client:
        assert (await client.get("/ready")).status_code == 503
