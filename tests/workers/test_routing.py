"""Workers that requests are aimed at: one that runs, drains, dies or lags."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest

from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Request
from shared.queue.interface import Room
from shared.settings import PolicyName, Settings
from tests.support.fakes import MODEL, answer, end_of, ended, make_request, submit
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import (
    GatedEngine,
    Harness,
    answer_tokens,
    expected_tokens,
    wait_for_tokens,
    wait_until,
)
from workers.scripted_engine import ScriptedEngine
from workers.worker import Worker


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"routing": "round-robin", "routing_patience": 10 * LIMIT_S, "max_num_seqs": 2}
    )


@pytest.fixture(autouse=True)
def fresh_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the router look at the workers before each request."""
    monkeypatch.setattr("shared.queue.router.HEARTBEATS_LIFE_S", 0.0)
    monkeypatch.setattr("shared.queue.router.LOADS_LIFE_S", 0.0)


async def present(backend: Backend, *workers: str) -> None:
    """Wait until requests can be aimed at the workers."""
    async with asyncio.timeout(LIMIT_S):
        while not {*workers} <= {*await backend.transport._loads(MODEL)} & {
            info.id for info in await backend.registry.workers()
        }:
            await asyncio.sleep(0.005)


async def submit_all(backend: Backend, count: int, max_tokens: int = 8) -> list[Request]:
    requests = [make_request(f"{i}", max_tokens=max_tokens) for i in range(count)]
    for request in requests:
        await submit(backend, request)
    return requests


def running(worker: Worker) -> set[str]:
    return {active.id for active in worker.active_requests()}


async def test_requests_run_on_the_workers_they_are_aimed_at(harness: Harness, backend: Backend) -> None:
    """Each has two seats: what is beyond them waits, though no other worker would lag behind."""
    gates = [GatedEngine(0), GatedEngine(0)]
    async with harness.worker(gates[0], "a") as a, harness.worker(gates[1], "b") as b:
        await present(backend, "a", "b")
        requests = await submit_all(backend, 6)
        await wait_until(lambda: len(running(a)) == len(running(b)) == 2)
        for gate in gates:
            gate.limit = 10**9
        for request in requests:
            assert end_of(await answer(backend, request.id)) == ("completed", None)
    assert backend.router.outcomes == {(MODEL, "aimed"): 6}


async def test_what_waits_for_a_draining_worker_goes_to_another(harness: Harness, backend: Backend) -> None:
    """The draining worker still runs two requests."""
    harness.settings = harness.settings.model_copy(update={"grace": 10 * LIMIT_S})
    gate = GatedEngine(0)
    async with harness.worker(gate, "a") as a:
        await present(backend, "a")
        held = await submit_all(backend, 2)
        await wait_until(lambda: len(running(a)) == 2)
        waiting = await submit_all(backend, 2)
        async with harness.worker(ScriptedEngine(), "b"):
            await present(backend, "a", "b")
            a.drain()
            for request in waiting:
                assert end_of(await answer(backend, request.id)) == ("completed", None)
            gate.limit = 10**9
            for request in held:
                assert end_of(await answer(backend, request.id)) == ("completed", None)
    assert backend.router.outcomes == {(MODEL, "aimed"): 4, (MODEL, "returned"): 2}


async def test_what_waits_for_a_dead_worker_goes_to_another(
    harness: Harness, backend: Backend, settings: Settings
) -> None:
    """It was idle when it died, so that no lease shows its death: it is silent for one."""
    brief = Backend.open(settings.model_copy(update={"lease": 0.5}))
    async with Harness(brief, settings.model_copy(update={"lease": 0.5})).worker(ScriptedEngine(), "b"):
        await present(brief, "b")
        await brief.registry.beat(WorkerInfo(id="a", pid=1, model=MODEL, state="ready"))
        await brief.transport.claim(MODEL, "a", Room.all(2))
        requests = await submit_all(brief, 4)
        for request in requests:
            assert (await ended(brief, request.id)).state.value == "completed"
    await brief.close()


async def test_what_a_worker_leaves_waiting_goes_to_one_with_room(harness: Harness, backend: Backend) -> None:
    """a is full with two requests that do not advance."""
    harness.settings = harness.settings.model_copy(update={"grace": 0})
    impatient = Backend.open(harness.settings.model_copy(update={"routing_patience": 0.2}))
    async with Harness(impatient, harness.settings).worker(GatedEngine(0), "a") as a:
        await present(impatient, "a")
        await submit_all(impatient, 2, max_tokens=500)
        await wait_until(lambda: len(running(a)) == 2)
        async with Harness(impatient, harness.settings).worker(ScriptedEngine(), "b"):
            await present(impatient, "a", "b")
            for request in await submit_all(impatient, 4):
                assert end_of(await answer(impatient, request.id)) == ("completed", None)
    await impatient.close()


async def test_heartbeats_carry_the_load(
    harness: Harness, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.load_meter.MIN_WINDOW_S", 1e-6)
    harness.settings = harness.settings.model_copy(update={"lease": 0.5})
    engine = GatedEngine(4)
    async with harness.worker(engine, "a"):
        await present(backend, "a")
        [request] = await submit_all(backend, 1, max_tokens=100)
        await wait_for_tokens(backend, request, 4)
        engine.limit = 4
        await wait_for_tokens(backend, request, 8)
        async with asyncio.timeout(LIMIT_S):
            while not (info := (await backend.registry.workers())[0]).tokens_per_s:
                await asyncio.sleep(0.01)
        assert info.tokens_in_flight == 92
        assert info.first_token_s is not None
        engine.limit = 10**9
        assert end_of(await answer(backend, request.id)) == ("completed", None)


@pytest.mark.parametrize("routing", [name for name in get_args(PolicyName) if name != "pull"])
async def test_every_request_is_answered_once_under_each_policy(
    routing: PolicyName, settings: Settings, backend: Backend
) -> None:
    """Three workers share the requests; one joins late and one drains early."""
    given = settings.model_copy(update={"routing": routing, "max_num_seqs": 4})
    routed = Backend.open(given)
    harness = Harness(routed, given)
    async with harness.worker(name="a"), harness.worker(name="b") as b:
        await present(routed, "a", "b")
        requests = await submit_all(routed, 6)
        async with harness.worker(name="c"):
            requests += await submit_all(routed, 6)
            b.drain()
            requests += await submit_all(routed, 6)
            for request in requests:
                assert answer_tokens(await answer(routed, request.id)) == expected_tokens(request)
    depth = await routed.transport.depth(MODEL)
    assert (depth.waiting, depth.held) == (0, 0)
    assert sum(n for (_, outcome), n in routed.router.outcomes.items() if outcome != "returned") == 18
    await routed.close()
