"""A master behind Sentinels: a failover is a temporary outage."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.doctor.redis_checks import examine_redis
from shared.backend import Backend
from shared.errors import Unavailable
from shared.protocol import TokenEvent
from shared.runtime.sockets import free_port, free_ports
from shared.settings import Settings
from tests.support.fakes import token_event
from tests.support.redis_path import DONE, collect, hold, whole_path, write
from tests.support.redis_servers import HOST, Node, opened, running, settings_for, until
from tests.support.waiting import LIMIT_S, ticking

pytestmark = pytest.mark.slow

ACL = "user me on >secret ~hr:* &hr:* +@all"


class Group:
    """Start a master, its replica and two Sentinels that fail over within a second or two."""

    def __init__(self, folder: Path) -> None:
        self.master = Node(folder / "master", ACL, "repl-diskless-sync-delay 0")
        self.replica = Node(
            folder / "replica", ACL, f"replicaof {HOST} {self.master.port}", "repl-diskless-sync-delay 0"
        )
        watch = [
            f"sentinel monitor main {HOST} {self.master.port} 2",
            "sentinel down-after-milliseconds main 1000",
            "sentinel failover-timeout main 2000",
        ]
        ports = free_ports(HOST, 2)
        self.sentinels = [Node(folder / f"s{port}", *watch, port=port, sentinel=True) for port in ports]

    def url(self, *first: str) -> str:
        hosts = [*first, *(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)]
        return f"redis+sentinel://me:secret@{','.join(hosts)}/main"

    def ready(self) -> bool:
        def knows(sentinel: Node) -> bool:
            with sentinel.admin() as client:
                state = client.sentinel_master("main")
            return state["num-slaves"] == 1 and state["num-other-sentinels"] == 1

        return all(knows(sentinel) for sentinel in self.sentinels)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    made = Group(tmp_path)
    with running(made.master, made.replica, *made.sentinels):
        until(made.ready)
        yield made


@pytest.fixture
def settings(group: Group, tmp_path: Path) -> Settings:
    dead = f"{HOST}:{free_port(HOST)}"
    return settings_for(group.url(dead), tmp_path, redis_timeout=0.5)


async def until_written(backend: Backend, leases: list, event: TokenEvent) -> int:
    """Retry as a worker does. Returns how often a call was Unavailable."""
    async with asyncio.timeout(LIMIT_S):
        for refused in range(1000):
            try:
                assert await write(backend, leases, event) == [True] * len(leases)
                return refused
            except Unavailable:
                await asyncio.sleep(0.05)
    raise AssertionError


async def test_a_hung_master_is_replaced(group: Group, settings: Settings) -> None:
    """While the master hangs, appends are Unavailable; then the new master takes the rest."""
    found = {finding.what: finding for finding in await examine_redis(settings)}
    assert found["topology"].found == "Sentinel: a master with 1 replica"
    async with opened(settings) as backend:
        await whole_path(backend)
        held = await hold(backend, 4)
        leases = [lease for _, lease in held]
        for item, _ in held:
            await backend.transport.acknowledge([item.claim])
        readers = [asyncio.create_task(collect(backend, lease.job_id)) for lease in leases]
        assert all(await write(backend, leases, token_event(0, "a")))
        assert group.master.call("WAIT", 1, 5000) == 1
        with group.master.hung():
            assert await until_written(backend, leases, token_event(1, "b")) > 0
            await until_written(backend, leases, TokenEvent(2, (), DONE))
            expected = [token_event(0, "a"), token_event(1, "b"), TokenEvent(2, (), DONE)]
            assert await asyncio.wait_for(asyncio.gather(*readers), LIMIT_S) == [expected] * 4
            assert "master" in str(group.replica.call("ROLE"))
            with group.sentinels[0].hung():
                await whole_path(backend)


async def test_a_master_that_became_a_replica_is_left(group: Group, settings: Settings) -> None:
    """After a demotion that closes no connection, the refusal itself makes the client find the new master."""
    async with opened(settings) as backend:
        leases = [lease for _, lease in await hold(backend, 2)]
        assert all(await write(backend, leases, token_event(0, "a")))
        assert group.master.call("WAIT", 1, 5000) == 1
        group.replica.call("REPLICAOF", "NO", "ONE")
        group.master.call("REPLICAOF", HOST, group.replica.port)
        for sentinel in group.sentinels:
            sentinel.call("SENTINEL", "REMOVE", "main")
            sentinel.call("SENTINEL", "MONITOR", "main", HOST, group.replica.port, 2)
        async with ticking() as ticks:
            await until_written(backend, leases, token_event(1, "b"))
        assert ticks.seconds < 5
        assert int(str(group.replica.call("DBSIZE"))) > 0


async def test_a_missing_sentinel_or_service_is_unavailable(group: Group, tmp_path: Path) -> None:
    unknown = group.url().replace("/main", "/other")
    dead = f"redis+sentinel://{HOST}:{free_port(HOST)}/main"
    for url in (unknown, dead):
        async with opened(settings_for(url, tmp_path, redis_timeout=0.5)) as backend:
            async with ticking() as ticks:
                with pytest.raises(Unavailable):
                    await backend.start()
            assert ticks.seconds < 1
