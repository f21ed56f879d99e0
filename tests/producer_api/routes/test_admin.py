"""Overview, requests, queues, workers and the audit log of the admin port."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from producer_api.app import create_app
from shared.backend import Backend
from shared.settings import Settings
from tests.support.admin_port import QUEUE, SECRET, other_model, publish
from tests.support.api_server import administering, calling, chat
from tests.support.fakes import MODEL, make_request, submit
from tests.support.scripted_worker import ScriptedWorker


@pytest.fixture
async def admin(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with administering(app) as opened:
        yield opened


async def test_the_overview_has_everything_and_no_texts(
    admin: httpx.AsyncClient, backend: Backend, worker: ScriptedWorker
) -> None:
    done = await publish(backend, "a")
    await worker.answer("secret answer")
    waiting = await publish(backend, "b")
    response = await admin.get("/admin/overview")
    found = response.json()
    assert found["models"] == [{"name": MODEL, "task": "generate", "asleep": False, "workers": 1, "ready": 1}]
    [queue], [seen_worker] = found["queues"], found["workers"]
    assert (queue["model"], queue["state"], queue["waiting"]) == (MODEL, "open", 1)
    assert {each["tenant"]: each["waiting"] for each in queue["tenants"]} == {"a": 0, "b": 1}
    assert (seen_worker["id"], seen_worker["seats"], seen_worker["load"]) == ("w1", 8, 0.0)
    assert [(each["id"], each["state"]) for each in found["recent"]] == [(waiting, "queued"), (done, "completed")]
    assert SECRET not in response.text
    assert "secret answer" not in response.text


async def test_requests_are_filtered(admin: httpx.AsyncClient, backend: Backend, worker: ScriptedWorker) -> None:
    done = await publish(backend, "a")
    await worker.answer("x")
    waiting = await publish(backend, "b")

    async def listed(**query: str) -> list[str]:
        return [each["id"] for each in (await admin.get("/admin/requests", params=query)).json()["data"]]

    assert await listed() == [waiting, done]
    assert await listed(tenant="a") == [done]
    assert await listed(state="queued") == [waiting]
    assert await listed(**{"class": "batch"}) == []
    assert await listed(model=MODEL, state="completed") == [done]


async def test_pages_of_several_queues_follow_each_other(admin: httpx.AsyncClient, backend: Backend) -> None:
    other, made = await other_model(backend), []
    for i in range(6):
        request = make_request()
        if i % 2:
            request = type(request)(
                **{**{f: getattr(request, f) for f in request.__struct_fields__}, "model": other}
            )
        made.append((await submit(backend, request)).job_id)
    found, query = [], {"limit": "4"}
    while True:
        page = (await admin.get("/admin/requests", params=query)).json()
        found += [each["id"] for each in page["data"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert [found.count(each) for each in made] == [1] * 6  # those of one millisecond are ordered by model
    for own in (made[::2], made[1::2]):
        assert [each for each in found if each in own] == own[::-1]


async def test_a_call_looks_at_a_bounded_number_of_requests(
    admin: httpx.AsyncClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer_api.routes.admin_requests.MAX_LIMIT", 2)
    monkeypatch.setattr("producer_api.routes.admin_requests.MAX_EXAMINED", 2)
    oldest = await publish(backend, "rare")
    for _ in range(3):
        await publish(backend)
    query = {"tenant": "rare", "limit": "1"}
    first = (await admin.get("/admin/requests", params=query)).json()
    assert (first["data"], first["next_cursor"] is not None) == ([], True)
    second = (await admin.get("/admin/requests", params=query | {"cursor": first["next_cursor"]})).json()
    assert [each["id"] for each in second["data"]] == [oldest]


async def test_one_request_has_its_place(admin: httpx.AsyncClient, backend: Backend) -> None:
    await publish(backend)
    job_id = await publish(backend)
    response = await admin.get(f"/admin/requests/{job_id}")
    assert (response.json()["position"], response.json()["state"]) == (2, "queued")
    timeline = await admin.get(response.json()["timeline"])
    assert [each["position"] for each in timeline.json()["positions"]] == [2, 2]
    assert SECRET not in response.text + timeline.text


@pytest.mark.parametrize(
    ("path", "status", "param"),
    [
        ("requests?limit=0", 400, "limit"),
        ("requests?limit=201", 400, "limit"),
        ("requests?limit=x", 400, "limit"),
        ("requests?cursor=x", 400, "cursor"),
        ("requests?cursor=1-2-%20", 400, "cursor"),
        ("requests?cursor=0-0-x", 400, "cursor"),
        ("requests?state=lost", 400, "state"),
        ("requests?class=urgent", 400, "class"),
        ("requests?model=no-such", 404, "model"),
        ("requests/req_00000000000000000000000000000000", 404, None),
        ("requests/x", 404, None),
        ("queues/no-such", 404, "model"),
        ("workers?model=no-such", 404, "model"),
        ("workers/no-such", 404, None),
        ("audit?cursor=1-2-3", 400, "cursor"),
        ("audit?cursor=0-0", 400, "cursor"),
        ("audit?limit=-1", 400, "limit"),
    ],
)
async def test_bad_input_is_refused(admin: httpx.AsyncClient, path: str, status: int, param: str | None) -> None:
    response = await admin.get(f"/admin/{path}")
    assert (response.status_code, response.json().get("param")) == (status, param)


async def test_a_paused_model_accepts_requests_that_wait(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, backend: Backend, worker: ScriptedWorker
) -> None:
    paused = await admin.post(f"{QUEUE}/pause")
    assert (paused.status_code, paused.json()) == (200, {"model": MODEL, "tenant": None, "state": "paused"})
    job = (await client.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})).json()
    for path, status in (("/ready", None), ("/health", "degraded")):
        probe = await client.get(path)
        assert (probe.status_code, probe.json().get("status")) == (200, status)
        assert probe.json()["reasons"] == [
            {"code": "queue_paused", "message": f"the queue of {MODEL} is paused: its requests wait"}
        ]
    assert (await client.get("/ready")).json()["ready"]
    view = (await admin.get(QUEUE)).json()
    assert (view["state"], view["waiting"]) == ("paused", 1)
    assert (await admin.post(f"{QUEUE}/resume")).json()["state"] == "open"
    assert (await client.get("/ready")).json()["reasons"] == []
    assert (await worker.answer("x")).id == job["id"]


async def test_a_paused_model_refuses_when_its_queue_is_full(settings: Settings, worker: ScriptedWorker) -> None:
    small = settings.model_copy(update={"queue_depth": 1})
    backend = Backend.open(small)
    app = create_app(small, backend)
    async with calling(app) as client, administering(app) as admin:
        assert (await admin.post(f"{QUEUE}/pause")).status_code == 200
        job = {"model": MODEL, "prompt": "x"}
        statuses = [(await client.post("/v1/jobs", json=job)) for _ in range(2)]
    assert [each.status_code for each in statuses] == [202, 503]
    assert (statuses[1].json()["code"], "retry-after" in statuses[1].headers) == ("queue_full", True)
    await app.state.context.close()
    await backend.close()


async def test_a_draining_model_refuses_with_a_typed_error(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, backend: Backend, worker: ScriptedWorker
) -> None:
    job_id = await publish(backend)
    assert (await admin.post(f"{QUEUE}/drain")).json()["state"] == "draining"
    assert [each["code"] for each in (await client.get("/ready")).json()["reasons"]] == ["queue_draining"]
    refused = await client.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})
    assert (refused.status_code, refused.json()["code"]) == (503, "queue_draining")
    assert refused.headers["retry-after"] == "10"
    refused = await client.post("/v1/chat/completions", json=chat())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_draining")
    assert (await worker.answer("x")).id == job_id


async def test_a_tenant_is_paused_and_drained_by_itself(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, backend: Backend
) -> None:
    other = await publish(backend, "a/b")
    for path, state in (("pause", "paused"), ("drain", "draining"), ("resume", "open")):
        changed = await admin.post(f"{QUEUE}/tenants/a/b/{path}")
        assert changed.json() == {"model": MODEL, "tenant": "a/b", "state": state}
    assert (await admin.post(f"{QUEUE}/tenants/default/drain")).status_code == 200
    refused = await client.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})
    assert (refused.status_code, refused.json()["code"]) == (503, "tenant_queue_draining")
    rows = {each["tenant"]: each for each in (await admin.get(QUEUE)).json()["tenants"]}
    assert (rows["default"]["state"], rows["a/b"]["state"], rows["a/b"]["waiting"]) == ("draining", "open", 1)
    assert other
    for path in (f"{QUEUE}/tenants/no-such/pause", "/admin/queues/no-such/pause"):
        assert (await admin.post(path)).status_code == 404


async def test_a_tenants_name_may_have_any_slashes(admin: httpx.AsyncClient, backend: Backend) -> None:
    for name in ("a", "a/", "https://idp.example/a"):
        await publish(backend, name)
    for sent, name in (("a%2F", "a/"), ("https:%2F%2Fidp.example%2Fa", "https://idp.example/a")):
        assert (await admin.post(f"{QUEUE}/tenants/{sent}/pause")).json()["tenant"] == name


async def test_held_requests_are_counted_by_tenant(
    admin: httpx.AsyncClient, backend: Backend, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tenant in ("a", "a", "b"):
        await publish(backend, tenant)
    for _ in range(2):
        await worker.take()
    view = (await admin.get("/admin/queues")).json()["data"][0]
    assert {each["tenant"]: each["held"] for each in view["tenants"]} == {"a": 1, "b": 1}
    assert (view["held"], {each["share"] for each in view["tenants"]}) == (2, {0.5})
    monkeypatch.setattr("producer_api.routes.admin_queues.MAX_HELD", 1)
    view = (await admin.get(QUEUE)).json()
    assert {each["held"] for each in view["tenants"]} == {None}


async def test_workers_are_listed_and_shown(admin: httpx.AsyncClient, backend: Backend) -> None:
    await other_model(backend)
    assert [each["id"] for each in (await admin.get("/admin/workers")).json()["data"]] == ["w2", "w1"]
    assert [each["id"] for each in (await admin.get(f"/admin/workers?model={MODEL}")).json()["data"]] == ["w1"]
    found = (await admin.get("/admin/workers/w2")).json()
    assert (found["model"], found["state"], found["seats"], found["heartbeat_age"] >= 0) == (
        "org/other",
        "ready",
        4,
        True,
    )


async def test_the_audit_log_has_every_action_with_its_outcome(admin: httpx.AsyncClient, backend: Backend) -> None:
    await admin.post(f"{QUEUE}/pause")
    await admin.post("/admin/queues/no-such/drain")
    await admin.post(f"/admin/models/{MODEL}/sleep")
    await admin.delete("/v1/dead-letters")
    await admin.post(f"/admin/models/{MODEL}/split", json={"branches": [{"model": "no-such"}], "by": "user"})
    await admin.get("/admin/audit")
    response = await admin.get("/admin/audit?limit=3")
    page = response.json()
    assert [(each["action"], each["target"], each["status"], each["code"]) for each in page["data"]] == [
        ("POST /admin/models/{name:path}/split", f"name={MODEL}", 404, "model_not_found"),
        ("DELETE /v1/dead-letters", "", 200, ""),
        ("POST /admin/models/{name:path}/sleep", f"name={MODEL}", 200, ""),
    ]
    rest = (await admin.get("/admin/audit", params={"limit": 3, "cursor": page["next_cursor"]})).json()
    assert [(each["target"], each["status"]) for each in rest["data"]] == [
        ("name=no-such", 404),
        (f"name={MODEL}", 200),
    ]
    assert rest["next_cursor"] is None
    assert abs(page["data"][0]["at"] - await backend.token_log.now()) < 60
    assert SECRET not in response.text
