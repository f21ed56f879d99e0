"""Traces of batches and tasks: their requests continue the trace of what asked for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from celery import Celery

from producer_api.app import create_app
from producer_api.batch_runner.celery_app import make_app
from producer_api.batch_runner.event_loop_host import EventLoopHost
from shared.backend import Backend
from shared.settings import Settings
from tests.support.api_server import calling, chat
from tests.support.batch_client import line
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.trace_collector import Collector, traced

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


@pytest.fixture
async def worker(backend: Backend) -> ScriptedWorker:
    scripted = ScriptedWorker(backend)
    await scripted.announce()
    return scripted


@pytest.fixture
async def host(settings: Settings, worker: ScriptedWorker, collector: Collector) -> AsyncIterator[EventLoopHost]:
    """Host of tasks that exports its spans when it is closed."""
    made = EventLoopHost(settings.model_copy(update={"otel_endpoint": collector.url}))
    await asyncio.to_thread(made.start, lambda _: None)
    yield made
    await asyncio.to_thread(made.close)


async def test_a_task_continues_the_trace_in_its_headers(
    settings: Settings, host: EventLoopHost, worker: ScriptedWorker, collector: Collector
) -> None:
    app: Celery = make_app(settings, host)
    app.conf.update(task_always_eager=True, task_store_eager_result=False)
    task = app.tasks["headrace.generate"]
    called = asyncio.create_task(
        asyncio.to_thread(task.apply, (chat(),), headers={"traceparent": TRACEPARENT}, throw=True)
    )
    request = await worker.answer("hello")
    assert (await called).get()["choices"][0]["message"]["content"] == "hello"
    await host.services.backend.tracer.close()
    send = collector.one(f"send {MODEL}")
    assert (send.trace_id, send.parent_id, send.service) == (TRACE, CALLER, "headrace-tasks")
    assert request.traceparent[:52] == f"00-{TRACE}-{send.span_id}"


async def test_the_lines_of_a_batch_continue_its_trace(
    settings: Settings, host: EventLoopHost, worker: ScriptedWorker, collector: Collector
) -> None:
    async with traced(settings, collector, "api") as api, calling(create_app(settings, api)) as http:
        content = json.dumps(line("a", "canary") | {"body": chat()}).encode()
        uploaded = await http.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"})
        body = {
            "input_file_id": uploaded.json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        created = await http.post("/v1/batches", json=body, headers={"traceparent": TRACEPARENT})
        assert created.status_code == 200, created.text
        running = asyncio.create_task(asyncio.to_thread(host.call, host.run_batch(created.json()["id"])))
        request = await worker.answer("hello")
        await running
    await host.services.backend.tracer.close()
    server, send = collector.one("POST /v1/batches"), collector.one(f"send {MODEL}")
    assert (server.trace_id, server.parent_id) == (TRACE, CALLER)
    assert (send.trace_id, send.parent_id, send.service) == (TRACE, server.span_id, "headrace-tasks")
    assert request.traceparent[:52] == f"00-{TRACE}-{send.span_id}"
    assert b"canary" not in b"".join(collector.received)
