"""Workers whose engine hangs: their requests go to other workers at once."""

from __future__ import annotations

import asyncio
import re
import threading
from concurrent.futures import Future

import msgspec
import pytest
import structlog

from shared.backend import Backend
from shared.protocol import Request, Structured
from shared.queue.interface import Room
from tests.support.fakes import MODEL, answer, end_of, make_request, submit
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import Harness, answer_tokens, expected_tokens, wait_for_tokens
from workers.engine.interface import Constraint, ConstraintSpec
from workers.health.watchdog import EngineHung
from workers.scripted_engine import ScriptedEngine


async def run_until_hung(harness: Harness, name: str, engine: ScriptedEngine | None = None) -> None:
    """Run a worker until its engine hangs."""
    async with asyncio.timeout(LIMIT_S):
        with pytest.RaisesGroup(EngineHung, flatten_subgroups=True):
            await harness.make(engine or ScriptedEngine(), name).run()


async def submitted(backend: Backend, *prompts: str) -> list[Request]:
    requests = [make_request(prompt, max_tokens=9) for prompt in prompts]
    for request in requests:
        await submit(backend, request)
    return requests


async def test_the_requests_of_a_hung_engine_continue_at_once(harness: Harness, backend: Backend) -> None:
    """Given an engine that hangs, and leases that do not expire, the next worker continues without gap."""
    requests = await submitted(backend, "[hang 5]", "a neighbour [pace 1]")
    await run_until_hung(harness, "a")
    assert [worker.state for worker in await backend.registry.workers()] == ["hung"]
    async with harness.worker(name="b"):
        for request in requests:
            assert answer_tokens(await answer(backend, request.id)) == expected_tokens(request)


async def test_a_request_that_hangs_every_engine_is_set_aside(harness: Harness, backend: Backend) -> None:
    [poison] = await submitted(backend, "[hang 0]")
    for name in "ab":
        await run_until_hung(harness, name)
    async with harness.worker(name="c"):
        assert end_of(await answer(backend, poison.id)) == ("failed", "request_abandoned")
    [letter] = await backend.dead_letters.list()
    assert (letter.request.id, letter.attempts) == (poison.id, 2)


class NeverCompiling:
    """Compiler whose grammars never complete, so that the preparation of a request lasts."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def start(self, form: ConstraintSpec) -> Future[Constraint]:
        self.asked.set()
        return Future()


async def test_only_what_the_hung_engine_had_counts_as_lost(harness: Harness, backend: Backend) -> None:
    """Given a request in the engine and one in preparation, only the former counts the worker as lost."""
    engine = ScriptedEngine()
    engine.constraints = NeverCompiling()  # type: ignore[assignment]  declared by its initial value, None
    prepared = make_request("a word")
    params = msgspec.structs.replace(prepared.params, structured_outputs=Structured(regex="[a-z]+"))
    prepared = msgspec.structs.replace(prepared, params=params)
    await submit(backend, prepared)
    [hung] = await submitted(backend, "[hang 2]")
    await run_until_hung(harness, "a", engine)
    assert engine.constraints.asked.is_set()
    found = (await backend.transport.claim(MODEL, "b", Room.all(9))).found
    assert {delivery.request.id: delivery.attempt for delivery in found} == {hung.id: 2, prepared.id: 1}


async def test_the_log_says_where_the_engine_hangs_without_prompts(harness: Harness, backend: Backend) -> None:
    await submitted(backend, "[hang 2] canary-71c")
    with structlog.testing.capture_logs() as lines:
        await run_until_hung(harness, "a")
    [line] = [line for line in lines if line["event"] == "engine_hung"]
    assert (line["kind"], "canary-71c" in str(lines)) == ("waiting", False)
    assert line["seconds"] >= 1.0
    assert re.search(r"/scripted_engine\.py:\d+ ScriptedEngine\.step\n", line["stack"])


async def test_a_worker_that_hangs_while_it_drains_gives_back_its_work(harness: Harness, backend: Backend) -> None:
    harness.settings = harness.settings.model_copy(update={"grace": 0.0})
    [request] = await submitted(backend, "[hang 2]")
    worker = harness.make(ScriptedEngine(), "a")
    running = asyncio.create_task(worker.run())
    await wait_for_tokens(backend, request, 2)
    worker.drain()
    async with asyncio.timeout(LIMIT_S):
        with pytest.RaisesGroup(EngineHung, flatten_subgroups=True):
            await running
    async with harness.worker(name="b"):
        assert answer_tokens(await answer(backend, request.id)) == expected_tokens(request)
