"""Versions are switched while requests arrive, and hosts are lost."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from shared.queue.interface import Room
from shared.redis import keys
from tests.support.fakes import answer, lapse
from tests.support.model_repository import HostHarness, output_of, write_config, write_model
from tests.support.waiting import LIMIT_S
from workers.engine.interface import EngineOutput
from workers.health.watchdog import EngineHung
from workers.predictors.engine import PredictorEngine

REQUESTS = int(os.environ.get("TEST_SWITCH_REQUESTS", "200"))
CALLERS = 8


async def test_no_request_fails_while_versions_are_switched(hosts: HostHarness) -> None:
    write_model(hosts.root, "m", 1)
    answers: list[float] = []
    done = asyncio.Event()

    async def call() -> None:
        while len(answers) < REQUESTS:
            answers.append(await hosts.ask("m"))
        done.set()

    async with hosts.host(model_control="poll"):
        callers = [asyncio.create_task(call()) for _ in range(CALLERS)]
        version = 1
        while not done.is_set():
            version = 3 - version
            write_model(hosts.root, "m", 2, factor=2)
            write_config(hosts.root, "m", f"version_policy {{ specific {{ versions: {version} }} }}")
            await hosts.until("m", **{f"v{version}": "READY"})
        await asyncio.gather(*callers)
    assert set(answers) == {1, 2}


async def test_a_version_waits_for_the_memory_of_the_old_one(hosts: HostHarness) -> None:
    """Given a budget that does not hold both versions, requests wait while they are exchanged."""
    write_model(hosts.root, "m", 1, memory=600)
    answers: list[float] = []
    async with hosts.host(model_control="poll"):
        await hosts.until("m", v1="READY")
        write_model(hosts.root, "m", 2, memory=600)
        async with asyncio.timeout(LIMIT_S):
            while not answers or answers[-1] != 2:
                answers.append(await hosts.ask("m"))
        await hosts.until("m", v2="READY")
    assert set(answers) == {1, 2}


async def test_a_hung_engine_ends_the_host(hosts: HostHarness) -> None:
    """The models of others are unloaded, and nothing is listed any longer."""
    write_model(hosts.root, "m")
    with pytest.raises(EngineHung):
        async with hosts.host() as host:
            assert await hosts.ask("m") == 1
            host._context.failed(EngineHung("the engine's step has been waiting for 4 s"))
    assert await hosts.backend.repository.statuses() == []
    assert await hosts.backend.registry.workers() == []


async def test_a_lost_hosts_requests_are_taken_over(hosts: HostHarness) -> None:
    """Given a request that a lost worker holds, the next host loads its model, though nothing waits."""
    write_model(hosts.root, "m")
    request = await hosts.send("m", 5)
    [delivery] = (await hosts.backend.transport.pull("m", "lost", Room.all(8))).found
    assert delivery.request.id == request.id
    await lapse(hosts.backend, "m")
    async with hosts.host(model_control="explicit", load_on_demand=True):
        assert output_of(await answer(hosts.backend, request.id)) == 5


async def test_a_model_whose_engine_fails_is_loaded_again(
    hosts: HostHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a request that an engine held when it failed, the next engine answers it, and others go on."""
    failing = threading.Event()
    step = PredictorEngine.step

    def step_or_fail(engine: PredictorEngine) -> list[EngineOutput]:
        if engine.name == "m" and failing.is_set():
            failing.clear()
            raise RuntimeError("out of memory")
        return step(engine)

    monkeypatch.setattr(PredictorEngine, "step", step_or_fail)
    write_model(hosts.root, "m", 3)
    write_model(hosts.root, "other", 2)
    async with hosts.host():
        first = await hosts.until_worker("m")
        failing.set()
        request = await hosts.send("m", 5)
        assert await hosts.ask("other") == 2
        async with asyncio.timeout(LIMIT_S):
            while failing.is_set() or (await hosts.until_worker("m")).id == first.id:
                await asyncio.sleep(0.01)
                await hosts.backend.registry.leave(first.id)
        await lapse(hosts.backend, "m")
        await hosts.backend.redis.publish(keys.wake_channel("m"), "released")
        assert output_of(await answer(hosts.backend, request.id)) == 15
