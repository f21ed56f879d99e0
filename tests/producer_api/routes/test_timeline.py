"""GET /v1/jobs/{id}/timeline: while a job waits, while it runs, and after its end."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from producer_api.background.sweeper import Sweeper
from shared.backend import Backend
from shared.errors import EngineFailed
from shared.protocol import ErrorInfo, RequestState, new_job_id
from tests.support.api_server import administering
from tests.support.fakes import MODEL, make_request, submit
from tests.support.scripted_worker import ScriptedWorker

QUEUES = ("redis", "kafka")


async def timeline(client: httpx.AsyncClient, job_id: str) -> dict[str, object]:
    response = await client.get(f"/v1/jobs/{job_id}/timeline")
    assert response.status_code == 200, response.text
    return response.json()


def names(found, kind: str) -> list[str]:
    return [each["name"] for each in found[kind]]


async def test_a_job_has_a_timeline_in_each_state(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    body = {"model": MODEL, "prompt": "hi"}
    first, second = [(await client.post("/v1/jobs", json=body)).json()["id"] for _ in range(2)]
    waiting = await timeline(client, second)
    assert (waiting["state"], names(waiting, "events")) == ("queued", ["admitted", "queued"])
    assert [each["position"] for each in waiting["queue"]] == [2, 2]
    assert waiting["queue"][1]["requests"] == {"interactive": 0, "standard": 1, "batch": 0}
    job = await worker.take()
    await job.say_all(["a", "b"])
    running = await timeline(client, first)
    assert running["state"] == "running"
    assert names(running, "events") == ["admitted", "queued", "pulled", "first_token"]
    await job.end()
    ended = await timeline(client, first)
    assert names(ended, "events")[-1] == "ended"
    assert ended["completion_tokens"] == 2
    assert ended["seconds"] == pytest.approx(sum(ended["totals"].values()))
    assert [each["position"] for each in ended["positions"]] == [1]
    workers = {each["worker"] for each in ended["phases"] if each["name"] not in ("intake", "queued")}
    assert workers == {"w1"}
    job = await worker.take()
    await job.end(RequestState.FAILED, ErrorInfo.from_error(EngineFailed("out of memory")))
    assert (await timeline(client, second))["events"][-1]["finish"] == "engine_failed"


async def test_a_job_that_ended_in_a_paused_queue_shows_the_pause(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    await backend.queues.set_gate(MODEL, "paused")
    job_id = (await client.post("/v1/jobs", json={"model": MODEL, "prompt": "hi"})).json()["id"]
    waiting = await timeline(client, job_id)
    assert names(waiting, "events") == ["admitted", "queued", "paused"]
    await client.delete(f"/v1/jobs/{job_id}")
    ended = await timeline(client, job_id)
    assert names(ended, "events") == ["admitted", "queued", "paused", "ended"]
    assert names(ended, "phases")[-1] == "paused"
    overdue = make_request(created_at=await backend.token_log.now(), deadline=1.0)
    await submit(backend, overdue)
    await Sweeper(backend, models).sweep(tidy=False)
    found = await timeline(client, overdue.id)
    assert (names(found, "events")[-2:], found["events"][-1]["finish"]) == (
        ["paused", "ended"],
        "deadline_exceeded",
    )


async def models() -> list[str]:
    return [MODEL]


async def test_only_the_admin_port_shows_another_tenants(
    app: FastAPI, client: httpx.AsyncClient, backend: Backend
) -> None:
    other = make_request(tenant="other", created_at=await backend.token_log.now())
    await submit(backend, other)
    for job_id in (other.id, new_job_id(), "req_x"):
        response = await client.get(f"/v1/jobs/{job_id}/timeline")
        assert response.status_code == 404
        assert response.json()["code"] == "not_found"
    async with administering(app) as admin:
        assert (await timeline(admin, other.id))["id"] == other.id
        assert (await admin.get(f"/v1/jobs/{new_job_id()}/timeline")).status_code == 404
