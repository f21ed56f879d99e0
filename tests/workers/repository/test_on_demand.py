"""Models that are loaded when requests wait for them, into a budget of memory."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shared.errors import ModelUnavailable
from shared.redis import keys
from tests.support.fakes import answer
from tests.support.model_repository import HostHarness, output_of, write_model
from tests.support.waiting import LIMIT_S

ON_DEMAND = {"model_control": "explicit", "load_on_demand": True}


async def test_a_request_has_its_model_loaded(hosts: HostHarness) -> None:
    """Requests that waited before the host was there count too."""
    for name in ("a", "b", "c"):
        write_model(hosts.root, name, factor=ord(name))
    early = await hosts.send("a")
    async with hosts.host(**ON_DEMAND):
        assert output_of(await answer(hosts.backend, early.id)) == ord("a")
        status = await hosts.until("b", v1="UNAVAILABLE")
        assert status.on_demand
        assert await hosts.ask("b") == ord("b")
        assert hosts.module.loaded == [("a", "1"), ("b", "1")]


async def test_the_least_recently_used_idle_model_leaves(hosts: HostHarness) -> None:
    for name in ("a", "b", "c"):
        write_model(hosts.root, name, memory=400)
    async with hosts.host(**ON_DEMAND):
        for name in ("a", "b", "a"):
            await hosts.ask(name)
        await hosts.ask("c")
        await hosts.until("b", v1="UNAVAILABLE")
        await hosts.until("a", v1="READY")
        await hosts.ask("b")
        await hosts.until("a", v1="UNAVAILABLE")


async def test_a_model_with_requests_does_not_leave(hosts: HostHarness) -> None:
    """Given a busy model that fills the budget, a request for another waits until it is idle."""
    gate = hosts.module.gates["busy"] = threading.Event()
    write_model(hosts.root, "busy", memory=800)
    write_model(hosts.root, "other", memory=800)
    async with hosts.host(**ON_DEMAND):
        first = await hosts.send("busy")
        await hosts.until("busy", v1="READY")
        second = await hosts.send("other")
        await hosts.until("other", v1="LOADING")
        assert (await hosts.until("busy", v1="READY")).ready
        gate.set()
        for request in (first, second):
            assert output_of(await answer(hosts.backend, request.id)) == 1
        await hosts.until("busy", v1="UNAVAILABLE")


async def test_a_model_larger_than_the_budget_is_refused(hosts: HostHarness) -> None:
    write_model(hosts.root, "huge", memory=5000)
    write_model(hosts.root, "small")
    async with hosts.host(**ON_DEMAND):
        with pytest.raises(ModelUnavailable, match=r"huge version 1 needs .* more than model_memory"):
            await hosts.ask("huge")
        assert await hosts.ask("small") == 1


async def test_models_without_room_say_so_unless_others_may_leave(hosts: HostHarness) -> None:
    for name in ("a", "b", "c"):
        write_model(hosts.root, name, memory=600)
    async with hosts.host(load_on_demand=False, model_memory="700"):
        async with asyncio.timeout(LIMIT_S):
            while True:
                statuses = await hosts.backend.repository.statuses()
                reasons = [version.reason for status in statuses for version in status.versions]
                refused = sum("model_memory" in reason for reason in reasons)
                if refused == 2 and sum(bool(status.ready) for status in statuses) == 1:
                    break
                await asyncio.sleep(0.01)


async def test_an_idle_model_costs_one_subscription(hosts: HostHarness) -> None:
    """No model of a repository that is not loaded has a worker."""
    for number in range(20):
        write_model(hosts.root, f"m{number}")
    async with hosts.host(**ON_DEMAND):
        await hosts.ask("m7")
        assert [worker.model for worker in await hosts.backend.registry.workers()] == ["m7"]
        assert await hosts.backend.redis.pubsub_numsub(keys.wake_channel("m3")) == [
            (keys.wake_channel("m3").encode(), 1)
        ]
