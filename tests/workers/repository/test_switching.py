"""Versions are switched while requests arrive, and hosts are lost."""

from __future__ import annotations

import asyncio
import os

import pytest

from shared.backend import Backend
from shared.errors import ConfigError
from shared.models.worker_registry import WorkerInfo
from shared.queue.interface import Room
from shared.settings import Settings
from tests.support.fakes import answer, lapse
from tests.support.model_repository import HostHarness, output_of, write_config, write_model
from tests.support.waiting import LIMIT_S
from workers.repository.serving.loading_record import recorded_load
from workers.repository.serving.memory_budget import Holder

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


async def test_a_lost_hosts_requests_are_taken_over(hosts: HostHarness) -> None:
    """Given a request that a lost worker holds, the next host loads its model, though nothing waits."""
    write_model(hosts.root, "m")
    request = await hosts.send("m", 5)
    [delivery] = (await hosts.backend.transport.pull("m", "lost", Room.all(8))).found
    assert delivery.request.id == request.id
    await lapse(hosts.backend, "m")
    async with hosts.host(model_control="explicit", load_on_demand=True):
        assert output_of(await answer(hosts.backend, request.id)) == 5


async def test_a_load_that_ended_workers_is_not_repeated(backend: Backend, settings: Settings) -> None:
    """Given as many lost workers as a request may lose, only what has changed is loaded."""
    holder, changed = Holder("m", 1, "stamp"), Holder("m", 1, "changed")
    for number in range(settings.max_attempts):
        await backend.repository.begin_load("m:1:stamp", f"lost-{number}")
    with pytest.raises(ConfigError, match="m version 1 has ended 3 worker processes"):
        async with recorded_load(backend, holder, "next", settings.max_attempts):
            pass
    async with recorded_load(backend, changed, "next", settings.max_attempts):
        pass


async def test_workers_that_load_do_not_count_as_lost(backend: Backend, settings: Settings) -> None:
    for number in range(settings.max_attempts):
        await backend.registry.beat(WorkerInfo(id=f"other-{number}", pid=1, model="m", state="loading"))
        await backend.repository.begin_load("m:1:stamp", f"other-{number}")
    async with asyncio.timeout(LIMIT_S), recorded_load(backend, Holder("m", 1, "stamp"), "next", 3):
        pass
