"""Orders to leave: a worker hands its answers over, and another one continues them."""

from __future__ import annotations

import asyncio

import pytest

from headrace.cli.main import app
from shared.backend import Backend
from shared.models.drain_orders import DrainOrder, DrainOrders
from shared.settings import Settings
from tests.support.fakes import answer, make_request, submit
from tests.support.typer_internals import CliRunner
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import (
    GatedEngine,
    Harness,
    answer_tokens,
    expected_tokens,
    wait_for_tokens,
)
from workers.stopping import orders
from workers.stopping.orders import watch_orders

NEVER_S = 100 * LIMIT_S


async def test_a_second_drain_hands_over_at_once(harness: Harness, backend: Backend) -> None:
    """Given a worker that drains and would wait for long, its answers continue elsewhere from their tokens."""
    harness.settings = harness.settings.model_copy(update={"grace": 3600})
    requests = [make_request(f"prompt {i}", max_tokens=20) for i in range(8)]
    for request in requests:
        await submit(backend, request)
    leaving = harness.make(GatedEngine(limit=3))
    task = asyncio.create_task(leaving.run())
    await wait_for_tokens(backend, requests[0], 1)
    leaving.drain()
    async with asyncio.timeout(LIMIT_S):
        while not (await backend.transport.depth("scripted")).held:
            await asyncio.sleep(0.005)
        leaving.drain(0)
        await task
        async with harness.worker(name="b"):
            answers = await asyncio.gather(*(answer(backend, request.id) for request in requests))
    assert [answer_tokens(events) for events in answers] == [expected_tokens(request) for request in requests]


async def test_orders_are_obeyed_without_polling(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given orders to others, then one to finish and one to hurry, the last two are obeyed."""
    monkeypatch.setattr(orders, "POLL_S", NEVER_S)
    assert backend.server is not None
    store, obeyed = DrainOrders(backend.server), asyncio.Queue[DrainOrder]()
    await store.place(["other"], "now")
    await store.place(["a"], "finish")
    task = asyncio.create_task(watch_orders(backend, lambda: ["a", "b"], obeyed.put_nowait))
    async with asyncio.timeout(LIMIT_S):
        assert await obeyed.get() == "finish"
        await store.place(["b"], "now")
        assert await obeyed.get() == "now"
    task.cancel()


def test_drain_names_one_worker_or_all(settings: Settings) -> None:
    url = settings.redis_url.get_secret_value()
    for arguments in ([], ["w", "--all"]):
        result = CliRunner().invoke(app, ["worker", "drain", *arguments, "--redis-url", url])
        assert "name one worker, or use --all" in str(result.exception)
    unknown = CliRunner().invoke(app, ["worker", "drain", "no-such", "--redis-url", url])
    assert "no worker 'no-such' is running" in str(unknown.exception)
