"""Delivery of webhooks: by several senders, and after the death of an API process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from producer_api.webhooks import sender
from producer_api.webhooks.post import Outcome
from producer_api.webhooks.sender import WebhookSender, after_attempt
from shared.backend import Backend
from shared.batches.store import VALIDATE, Batches, LineError
from shared.errors import ConfigError
from shared.settings import Settings
from shared.webhooks.interface import Hook, Webhook, WebhookState
from tests.support.cluster import running
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S
from tests.support.webhook_receiver import SECRET, Receiver, documented, status


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "FIRST_BACKOFF_S", 0.1)
    monkeypatch.setattr(sender, "POLL_INTERVAL_S", 0.1)


@asynccontextmanager
async def sending(settings: Settings, backend: Backend, count: int = 1) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(WebhookSender(settings, backend).run()) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def submit(http: httpx.AsyncClient, url: str, **more: Any) -> str:
    body = {"model": MODEL, "prompt": "x", "webhook": {"url": url, **more}}
    response = await http.post("/v1/jobs", json=body)
    assert response.status_code == 202, response.text
    return response.json()["id"]


async def until(http: httpx.AsyncClient, work: str, state: str, kind: str = "jobs") -> dict[str, Any]:
    async with asyncio.timeout(LIMIT_S):
        while (found := (await http.get(f"/v1/{kind}/{work}")).json()["webhook"])["state"] != state:
            await asyncio.sleep(0.02)
    return found


async def test_a_webhook_is_delivered_once_and_signed(
    settings: Settings, backend: Backend, http: httpx.AsyncClient, worker: ScriptedWorker, receiver: Receiver
) -> None:
    """With three senders and a receiver that fails twice, the same message arrives three times."""
    receiver.answers = [status(500), status(429, "retry-after: 1")]
    job = await submit(http, receiver.url())
    assert (await until(http, job, "waiting"))["attempts"] == 0
    async with sending(settings, backend, 3):
        await worker.answer("a", "b")
        first, second, third = await receiver.until(3)
        seen = await until(http, job, "delivered")
    assert seen == {
        "state": "delivered",
        "attempts": 3,
        "last_status": 204,
        "last_error": None,
        "next_attempt_at": None,
    }
    assert first.body == second.body == third.body
    assert {each.headers["webhook-id"] for each in receiver.received} == {f"msg_{job}"}
    for each in receiver.received:
        documented()(SECRET, each.headers, each.body)
    assert (first.json["type"], first.json["data"]["id"]) == ("job.completed", job)
    assert first.json["data"]["usage"]["completion_tokens"] == 2
    assert "choices" not in first.json["data"], "the text of the answer is not sent"
    assert len(receiver.received) == 3


async def test_only_the_requested_events_are_sent(
    settings: Settings, backend: Backend, http: httpx.AsyncClient, receiver: Receiver
) -> None:
    wanted = await submit(http, receiver.url(), events=["job.cancelled"])
    other = await submit(http, receiver.url(), events=["job.failed"])
    gone = await submit(http, receiver.url() + "/gone")
    async with sending(settings, backend):
        receiver.answers = [status(204), status(410)]
        for job in (wanted, other):
            await http.delete(f"/v1/jobs/{job}")
        await until(http, wanted, "delivered")
        await until(http, other, "skipped")
        await http.delete(f"/v1/jobs/{gone}")
        found = await until(http, gone, "failed")
    assert (found["last_status"], found["attempts"]) == (410, 1)
    assert [each.json["data"]["id"] for each in receiver.received] == [wanted, gone]


async def test_an_end_without_a_running_sender_is_found(
    settings: Settings, backend: Backend, http: httpx.AsyncClient, worker: ScriptedWorker, receiver: Receiver
) -> None:
    """A job that ended while no sender ran is delivered; a webhook without a job is dropped."""
    job = await submit(http, receiver.url())
    ghost = Webhook(id="req_ghost", hook=Hook(receiver.url()), created_at=0.0)
    await backend.webhooks.add(ghost, 0)
    await worker.answer("a")
    async with sending(settings, backend):
        await until(http, job, "delivered")
        async with asyncio.timeout(LIMIT_S):
            while await backend.webhooks.get("req_ghost") is not None:
                await asyncio.sleep(0.02)
    assert len(receiver.received) == 1


async def batch(http: httpx.AsyncClient, url: str, **more: Any) -> str:
    file = await http.post("/v1/files", files={"file": ("in.jsonl", b"{}")}, data={"purpose": "batch"})
    asked = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = await http.post("/v1/batches", json={**asked, "webhook": {"url": url, **more}})
    assert made.json()["webhook"]["state"] == "waiting"
    return made.json()["id"]


async def test_the_end_of_a_batch_is_found_by_the_sender(
    settings: Settings, backend: Backend, http: httpx.AsyncClient, receiver: Receiver
) -> None:
    """Batches end in processes that die at once, before a sender starts; the requested events are sent."""
    assert backend.server is not None
    batches = Batches.from_settings(settings, backend.server)
    failed = await batch(http, receiver.url(), events=["batch.failed", "batch.completed"])
    other = await batch(http, receiver.url(), events=["batch.completed"])
    cancelled = await batch(http, receiver.url())
    for each in (failed, other):
        item = await batches.claim(each)
        assert item is not None
        assert await batches.fail(item, [LineError("empty_file", "there are no lines")])
    async with sending(settings, backend):
        await until(http, failed, "delivered", "batches")
        await until(http, other, "skipped", "batches")
        await http.post(f"/v1/batches/{cancelled}/cancel")
        for _ in range(2):
            item = await batches.claim(cancelled)
            assert item is not None
            await (batches.plan(item, 0, ()) if item.name == VALIDATE else batches.finish(item, "file-1", None))
        await backend.webhooks.wake(cancelled)
        await until(http, cancelled, "delivered", "batches")
    first, second = receiver.received
    documented()(SECRET, first.headers, first.body)
    assert (first.json["type"], first.json["data"]["id"]) == ("batch.failed", failed)
    data = second.json["data"]
    assert (second.json["type"], data["id"], data["output_file_id"]) == ("batch.cancelled", cancelled, "file-1")
    assert data["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    refused = await http.post("/v1/batches", json={"webhook": {"url": receiver.url(), "events": ["job.failed"]}})
    assert refused.status_code == 400


@pytest.mark.parametrize(
    ("url", "code"),
    [("https://10.0.0.1/", "webhook_address_forbidden"), ("http://example.com/", "webhook_address_forbidden")],
)
async def test_a_forbidden_address_is_refused(settings: Settings, backend: Backend, url: str, code: str) -> None:
    from producer_api.app import create_app

    async def post(used: Settings, body: dict[str, Any]) -> dict[str, Any]:
        transport = httpx.ASGITransport(create_app(used, backend), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            response = await http.post("/v1/jobs", json={"model": MODEL, "prompt": "x", "webhook": body})
        assert response.status_code == 400
        return response.json()

    strict = settings.model_copy(update={"webhook_allow_http": False, "webhook_allow_private": False})
    assert (await post(strict, {"url": url}))["code"] == code
    assert (await post(strict, {"url": "https://a", "events": ["job.started"]}))["param"].startswith(
        "webhook.events"
    )
    none = strict.model_copy(update={"webhook_secrets": type(strict.webhook_secrets)("")})
    assert "webhook_secrets" in (await post(none, {"url": "https://example.com"}))["detail"]
    with pytest.raises(ConfigError):
        bad = strict.model_copy(update={"webhook_secrets": type(strict.webhook_secrets)("secret")})
        WebhookSender(bad, backend)


def test_the_waits_of_retries_grow_and_end() -> None:
    """The waits grow, Retry-After is obeyed, and the retries end after a day."""
    webhook = Webhook(id="req_1", hook=Hook("https://a"), created_at=0.0, state=WebhookState.PENDING, ended_at=0.0)
    now, waits = 0.0, []
    while True:
        webhook, wait = after_attempt(webhook, Outcome(500), now, 86_400)
        if wait is None:
            break
        assert webhook.next_attempt_at == now + wait
        waits.append(wait)
        now += wait
    assert webhook.state is WebhookState.FAILED
    assert 86_400 - 3600 < now <= 86_400
    assert max(waits) <= 3600
    assert 0.05 <= waits[0] <= 0.1
    _, wait = after_attempt(
        msgspec.structs.replace(webhook, attempts=0), Outcome(503, retry_after=700), 0.0, 86_400
    )
    assert wait == 700


@pytest.mark.slow
async def test_webhooks_survive_the_death_of_the_api(tmp_path: Path, receiver: Receiver) -> None:
    """The API is killed during a delivery and while a job runs; both webhooks are delivered afterwards."""
    options = {"webhook_secrets": SECRET, "webhook_allow_http": True, "webhook_allow_private": True}
    receiver.answers = [None]
    async with (
        running(tmp_path, apis=1, workers=1, webhook_timeout=60, **options) as cluster,
        httpx.AsyncClient(base_url=cluster.urls[0], timeout=LIMIT_S) as http,
    ):
        quick = await submit(http, receiver.url())
        slow = await http.post(
            "/v1/jobs",
            json={
                "model": MODEL,
                "prompt": "[pace 300]",
                "max_tokens": 5,
                "webhook": {"url": receiver.url()},
            },
        )
        await receiver.until(1)
        cluster.apis[0].kill()
        cluster.expire_webhook(quick)
        await cluster.apis[0].start()
        await receiver.until(3)
        for job in (quick, slow.json()["id"]):
            await until(http, job, "delivered")
    sent = [each.headers["webhook-id"] for each in receiver.received]
    assert set(sent) == {f"msg_{quick}", f"msg_{slow.json()['id']}"}
    assert sent.count(f"msg_{quick}") == 2  # the other one, too, where it was sent before the API was killed
