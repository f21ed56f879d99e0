"""Putting models to sleep and waking them, on the admin port, and how many ready workers a model needs."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from headrace.cli.main import app as command_line
from producer_api.app import create_app
from producer_api.server import AdminServer, bind
from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.redis import keys
from shared.settings import Settings
from tests.support.api_server import administering, calling
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.typer_internals import CliRunner


async def readiness(settings: Settings, backend: Backend) -> tuple[int, str | None]:
    """Return the status and the reason of /ready, from an application without cached workers."""
    async with calling(create_app(settings, backend)) as client:
        response = await client.get("/ready")
    return response.status_code, response.json().get("reason")


async def test_a_sleeping_model_is_not_ready_and_keeps_its_queue(
    app: FastAPI, client: httpx.AsyncClient, settings: Settings, backend: Backend
) -> None:
    async with administering(app) as admin:
        slept = await admin.post(f"/admin/models/{MODEL}/sleep")
        assert (slept.status_code, slept.json()) == (200, {"model": MODEL, "asleep": True})
        assert await readiness(settings, backend) == (503, f"{MODEL} is asleep")
        assert (await client.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})).status_code == 202
        assert (await backend.transport.depth(MODEL)).waiting == 1
        woken = await admin.post(f"/admin/models/{MODEL}/wake")
        assert woken.json() == {"model": MODEL, "asleep": False}
    assert await readiness(settings, backend) == (200, None)


async def test_a_sleeping_model_stays_known_without_workers(
    app: FastAPI, backend: Backend, settings: Settings
) -> None:
    await backend.registry.beat(WorkerInfo(id="w2", pid=1, model="org/other", state="ready"))
    async with administering(app) as admin:
        assert (await admin.post("/admin/models/org/other/sleep")).status_code == 200
        await backend.registry.leave("w2")
        await backend.redis.delete(keys.model("org/other"))
        async with calling(create_app(settings, backend)) as client:
            assert (await client.get("/v1/models/org/other")).status_code == 200
        assert (await admin.post("/admin/models/org/other/wake")).status_code == 200


async def test_only_known_models_can_be_put_to_sleep(app: FastAPI, client: httpx.AsyncClient) -> None:
    async with administering(app) as admin:
        refused = await admin.post("/admin/models/no-such/sleep")
        assert (refused.status_code, refused.json()["code"]) == (404, "model_not_found")
    assert (await client.post(f"/admin/models/{MODEL}/sleep")).status_code == 404  # not on the API's port


async def test_min_workers_keeps_a_model_awake(settings: Settings, backend: Backend) -> None:
    app = create_app(settings.model_copy(update={"min_workers": 1}), backend)
    async with administering(app) as admin:
        refused = await admin.post(f"/admin/models/{MODEL}/sleep")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")


async def test_a_model_is_ready_with_min_workers(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    needing_two = settings.model_copy(update={"min_workers": 2})
    assert await readiness(needing_two, backend) == (503, f"1 of 2 workers that {MODEL} needs are ready")
    assert await readiness(settings, backend) == (200, None)


async def test_vllms_routes_put_the_default_model_to_sleep(
    app: FastAPI, backend: Backend, worker: ScriptedWorker
) -> None:
    async with administering(app) as admin:
        assert (await admin.post("/sleep?level=2&mode=wait")).status_code == 200
        assert (await admin.get("/is_sleeping")).json() == {"is_sleeping": False}  # its worker has the weights
        await worker.announce("sleeping")
        await backend.registry.set_asleep(MODEL, asleep=True)
        app.state.context.catalog._snapshot = None
        assert (await admin.get("/is_sleeping")).json() == {"is_sleeping": True}
        assert (await admin.post("/wake_up?tags=weights")).status_code == 200
        assert (await admin.get("/is_sleeping")).json() == {"is_sleeping": False}
    assert await backend.registry.asleep() == frozenset()


async def test_the_command_line_puts_a_model_to_sleep(app: FastAPI, settings: Settings, backend: Backend) -> None:
    with bind(settings.model_copy(update={"admin_port": 0}), "admin_host", "admin_port") as listener:
        server = AdminServer(app.state.context)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for command, outcome, asleep in (("sleep", "falls asleep", {MODEL}), ("wake", "wakes up", set())):
            done = await asyncio.to_thread(
                CliRunner().invoke, command_line, ["models", command, MODEL, "--url", url]
            )
            assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, f"{MODEL} {outcome}")
            assert await backend.registry.asleep() == asleep
        server.should_exit = True
        await serving


@pytest.mark.parametrize("query", ["level=0", "level=x", "mode=abort"])
async def test_vllms_sleep_refuses_what_is_not_supported(app: FastAPI, backend: Backend, query: str) -> None:
    async with administering(app) as admin:
        refused = await admin.post(f"/sleep?{query}")
    assert refused.status_code == 400
    assert refused.json()["detail"].startswith(query.split("=", maxsplit=1)[0])
    assert await backend.registry.asleep() == frozenset()
