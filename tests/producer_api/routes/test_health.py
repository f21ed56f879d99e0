"""Probes: who sees what, and that they stay cheap."""

from __future__ import annotations

import msgspec
import pytest
from fastapi import FastAPI

from producer_api.admission.model_catalog import SNAPSHOT_LIFE_S
from producer_api.app import create_app
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.models.worker_registry import UNHEALTHY_STATUS, WorkerExit, WorkerInfo
from shared.redis import keys
from shared.settings import Settings
from tests.support.api_server import administering, calling
from tests.support.fakes import MODEL
from tests.support.loop_clock import stopped_clock
from tests.support.waiting import LIMIT_S

MOST_COMMANDS_OF_A_LOOK = 17  # two lists, what each of their three members has, and the queue's gate

WORKER = WorkerInfo(
    id="host-1-abc",
    pid=1,
    model=MODEL,
    state="ready",
    active_requests=3,
    running=2,
    waiting=1,
    blocks_used=25,
    blocks_total=100,
    step_age=0.25,
    gpu_memory_used=7,
)


@pytest.fixture
async def beating(backend: Backend) -> Backend:
    """Registry with WORKER, and a worker of another model that loads."""
    await backend.registry.beat(WORKER)
    other = WorkerInfo(id="host-2-def", pid=2, model="other", state="loading", progress=0.5)
    await backend.registry.beat(other)
    return backend


async def test_health_lists_all_workers_without_auth(beating: Backend, settings: Settings) -> None:
    async with calling(create_app(settings, beating)) as client:
        answer = await client.get("/health")
    found = answer.json()
    workers = {worker.pop("id"): worker for worker in found["workers"]}
    assert (answer.status_code, found["status"], found["reasons"]) == (200, "ok", [])
    assert 0 <= workers["host-1-abc"].pop("heartbeat_age") < LIMIT_S
    assert workers["host-1-abc"] == {
        "model": MODEL,
        "runtime": "native",
        "state": "ready",
        "model_loaded": True,
        "progress": 0.0,
        "active_requests": 3,
        "running": 2,
        "waiting": 1,
        "blocks_used": 25,
        "blocks_total": 100,
        "kv_use": 0.25,
        "gpu_memory_used": 7,
        "step_age": 0.25,
    }
    loading = workers["host-2-def"]
    assert (loading["model_loaded"], loading["progress"], loading["kv_use"]) == (False, 0.5, None)


async def test_with_auth_only_the_admin_port_shows_workers(beating: Backend, settings: Settings) -> None:
    """Given auth, expect no trace of a worker in the public probes, whatever key comes with them."""
    settings = settings.model_copy(update={"auth": True})
    app = create_app(settings, beating)
    async with Database.from_settings(settings) as database:
        keys = ApiKeys(database, pepper_of(settings))
        _, key = await keys.create(tenant="t", scopes=Scopes.parse(admin=True))
    for given in (None, key):
        async with calling(app, given) as client:
            assert (await client.get("/health")).json() == {"status": "ok", "reasons": []}
            ready = (await client.get("/ready")).json()
            assert ready == {"ready": True, "model": MODEL, "progress": 1.0, "reasons": [], "reason": None}
    async with administering(app) as stranger, administering(app, key) as admin:
        for path in ("/health", "/ready"):
            assert (await stranger.get(path)).status_code == 401
            assert "host-1-abc" in (await admin.get(path)).text
        assert (await stranger.get("/live")).json() == {"status": "ok"}
        assert [worker["model"] for worker in (await admin.get("/ready")).json()["workers"]] == [MODEL]
    await app.state.context.close()


@pytest.mark.parametrize(
    ("states", "status", "codes"),
    [
        (["ready", "hung"], "degraded", ["hung_workers"]),
        (["hung"], "unavailable", ["hung_workers"]),
        ([], "unavailable", ["no_worker"]),
    ],
)
async def test_health_is_200_while_the_model_is_served(
    app: FastAPI, backend: Backend, states: list[str], status: str, codes: list[str]
) -> None:
    await backend.redis.flushall()
    for number, state in enumerate(states):
        await backend.registry.beat(msgspec.structs.replace(WORKER, id=f"w{number}", state=state))
    async with calling(app) as client:
        health, ready = await client.get("/health"), await client.get("/ready")
    found = health.json()
    assert (health.status_code, found["status"]) == (200 if status == "degraded" else 503, status)
    tgi = ("unhealthy", "healthcheck") if health.status_code == 503 else (None, None)
    assert (found.get("error"), found.get("error_type")) == tgi
    assert [reason["code"] for reason in found["reasons"]] == codes
    assert ready.status_code == (200 if status == "degraded" else 503)
    if ready.status_code == 503:
        assert ready.headers["retry-after"] == "1"
        assert ready.json()["reasons"] == found["reasons"]
        assert ready.json()["reason"] == "; ".join(reason["message"] for reason in found["reasons"])


async def test_an_embedding_model_without_workers_degrades(beating: Backend, settings: Settings) -> None:
    settings = settings.model_copy(update={"embedding_model": "all-minilm-l6-v2"})
    async with calling(create_app(settings, beating)) as client:
        found = (await client.get("/health")).json()
        assert (found["status"], [reason["code"] for reason in found["reasons"]]) == ("degraded", ["no_worker"])
        assert (await client.get("/ready")).status_code == 200


async def test_without_redis_the_process_is_alive(settings: Settings) -> None:
    nowhere = type(settings.redis_url)("redis://127.0.0.1:1/0")
    settings = settings.model_copy(update={"redis_url": nowhere, "redis_timeout": 0.1})
    backend = Backend.open(settings)
    async with calling(create_app(settings, backend)) as client:
        assert (await client.get("/live")).status_code == 200
        health, ready = await client.get("/health"), await client.get("/ready")
    await backend.close()
    assert (health.status_code, health.json()["status"]) == (503, "unavailable")
    assert [reason["code"] for reason in health.json()["reasons"]] == ["redis_unreachable"]
    assert (ready.status_code, ready.json()["reasons"]) == (503, health.json()["reasons"])


async def test_a_server_that_shuts_down_says_so(app: FastAPI) -> None:
    app.state.context.open_answers.drain()
    async with calling(app) as client:
        assert (await client.get("/live")).status_code == 200
        found, ready = (await client.get("/health")).json(), await client.get("/ready")
    assert (found["status"], found["reasons"][0]["code"]) == ("unavailable", "server_draining")
    assert ready.status_code == 503


async def test_probes_share_one_look_at_redis(app: FastAPI, beating: Backend) -> None:
    async def commands() -> int:
        return (await beating.redis.info("stats"))["total_commands_processed"]

    async with calling(app) as client:
        with stopped_clock() as clock:
            for seconds, looks in ((0, 1), (SNAPSHOT_LIFE_S / 2, 0), (SNAPSHOT_LIFE_S, 1)):
                await clock.advance(seconds)
                before = await commands()
                for path in ("/live", "/health", "/ready") * 9:
                    assert (await client.get(path)).status_code == 200
                assert await commands() - before - 1 <= looks * MOST_COMMANDS_OF_A_LOOK


async def test_metrics_count_workers_and_their_ends(app: FastAPI, beating: Backend) -> None:
    for status in (UNHEALTHY_STATUS, UNHEALTHY_STATUS, -9, 1):
        await beating.registry.note_exit(MODEL, WorkerExit(status=status, at=0.0, restart_at=0.0))
    await beating.redis.hset(keys.WORKER_EXITS, mapping={"nonsense": 1, f"hung:{MODEL}x": "many"})
    async with administering(app) as client:
        lines = (await client.get("/metrics")).text.splitlines()
    assert {line for line in lines if line.startswith(("headrace_workers{", "headrace_worker_exits_total{"))} == {
        f'headrace_workers{{model="{MODEL}",state="ready"}} 2.0',  # the fixtures' worker too
        'headrace_workers{model="other",state="loading"} 1.0',
        f'headrace_worker_exits_total{{cause="hung",model="{MODEL}"}} 2.0',
        f'headrace_worker_exits_total{{cause="killed",model="{MODEL}"}} 1.0',
        f'headrace_worker_exits_total{{cause="exited",model="{MODEL}"}} 1.0',
    }
