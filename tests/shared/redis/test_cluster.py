"""A Cluster of three primaries: calls find their nodes while slots move and nodes die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from headrace.doctor.redis_acl import acl_rule
from headrace.doctor.redis_checks import examine_redis
from shared.errors import ConfigError, Unavailable
from shared.models.worker_registry import WorkerInfo
from shared.protocol import PriorityClass, TokenEvent
from shared.queue.interface import Delivery, Room
from shared.redis import keys
from shared.redis.cluster import SLOTS, Cluster, slot_of
from shared.redis.multiplexer import Pipe
from shared.runtime.sockets import free_ports
from shared.settings import Settings
from shared.token_log.interface import Keepsake, Lease
from tests.support.fakes import MODEL, answer, make_request, submit, token_event
from tests.support.redis_path import DONE, cancelled, collect, hold, whole_path, write
from tests.support.redis_servers import HOST, Node, opened, running, settings_for, until
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.slow
LIMIT_MS = int(LIMIT_S * 1000)
REPLACED_AFTER_MS = 1_500  # a primary that does not answer


class Nodes:
    """Start three primaries with a third of the slots each, and a replica of the last."""

    def __init__(self, folder: Path) -> None:
        ports = free_ports(HOST, 8)
        self.all = [
            Node(
                folder / str(port),
                "cluster-enabled yes",
                f"cluster-port {bus}",
                f"cluster-node-timeout {LIMIT_MS}",  # a slow machine replaces no primary
                "cluster-replica-validity-factor 0",
                "repl-diskless-sync-delay 0",
                "appendonly yes",
                port=port,
            )
            for port, bus in zip(ports[:4], ports[4:], strict=True)
        ]
        self.buses = ports[4:]
        self.primaries, self.replica = self.all[:3], self.all[3]

    def form(self) -> None:
        share = SLOTS // 3
        for i, node in enumerate(self.primaries):
            last = SLOTS - 1 if i == 2 else (i + 1) * share - 1
            node.call("CLUSTER", "ADDSLOTSRANGE", i * share, last)
            node.call("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        for node, bus in zip(self.all[1:], self.buses[1:], strict=True):
            self.all[0].call("CLUSTER", "MEET", HOST, node.port, bus)
        until(lambda: all(self._info(node)["cluster_known_nodes"] == "4" for node in self.all))
        self.replica.call("CLUSTER", "REPLICATE", self.id(self.primaries[2]))
        until(lambda: all(self._info(node)["cluster_state"] == "ok" for node in self.all))
        until(lambda: "connected" in str(self.replica.call("ROLE")))

    def replace_after(self, timeout_ms: int, nodes: Sequence[Node]) -> None:
        """Set how long a primary may be silent, and wait until the nodes agree that all slots are served."""
        for node in nodes:
            node.call("CONFIG", "SET", "cluster-node-timeout", timeout_ms)
        until(lambda: all(self._info(node)["cluster_state"] == "ok" for node in nodes))

    def _info(self, node: Node) -> dict[str, str]:
        with node.admin() as client:
            return client.cluster("INFO")

    def id(self, node: Node) -> str:
        return str(node.call("CLUSTER", "MYID"))

    def holder(self, key: str) -> Node:
        share = SLOTS // 3
        return self.primaries[min(slot_of(key) // share, 2)]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.primaries[:2])


@pytest.fixture(scope="module")
def formed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    made = Nodes(tmp_path_factory.mktemp("cluster"))
    with running(*made.all):
        made.form()
        yield made


@pytest.fixture
def nodes(formed: Nodes) -> Nodes:
    for node in formed.primaries:
        node.call("FLUSHALL")
        node.call("SCRIPT", "FLUSH")
    return formed


@pytest.fixture
def settings(nodes: Nodes, tmp_path: Path) -> Settings:
    return settings_for(nodes.url, tmp_path, redis_timeout=30)


def test_slots_are_those_of_the_specification(nodes: Nodes) -> None:
    for key in (
        "a:123456789",
        keys.state("req_1"),
        keys.queue(MODEL, PriorityClass.BATCH),
        "a{}b",
        "{a",
        "a}{b}{c}",
    ):
        assert slot_of(key) == nodes.all[0].call("CLUSTER", "KEYSLOT", key)


async def test_the_whole_path_over_all_nodes(nodes: Nodes, settings: Settings) -> None:
    async with opened(settings) as backend:
        await backend.start()
        await whole_path(backend, 64)
        await cancelled(backend)
        requests = [make_request() for _ in range(20)]
        for request in requests:
            await backend.token_log.create(request, keepsake=Keepsake(b"{}", ttl=60))
            assert await backend.token_log.keepsake(request.id) == b"{}"
        unfinished = [record.id async for records in backend.token_log.unfinished() for record in records]
        assert sorted(unfinished) == sorted(request.id for request in requests)
        assert abs(await backend.token_log.now() - time.time()) < 60
        for request in requests:
            await backend.token_log.close(request.id)
            assert await backend.redis.exists(keys.keepsake(request.id)) == 1
    assert all(int(str(node.call("DBSIZE"))) > 10 for node in nodes.primaries)


async def test_the_doctor_knows_a_cluster(nodes: Nodes, settings: Settings, tmp_path: Path) -> None:
    nodes.primaries[1].call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        found = {finding.what: finding for finding in await examine_redis(settings)}
    finally:
        nodes.primaries[1].call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert found["topology"].found == "Cluster: 3 primaries, 1 replica"
    assert found["eviction"].status == "failed"  # of the three, the worst
    assert found["permissions"].status == "ok"
    plain = {finding.what: finding for finding in await examine_redis(settings_for(nodes.all[0].url, tmp_path))}
    assert "redis+cluster://" in plain["topology"].remedy


async def test_the_least_users_on_a_cluster(nodes: Nodes, tmp_path: Path) -> None:
    """Connect as two users with only the documented permissions."""
    for node in nodes.all:
        for role in ("api", "worker"):
            node.call(*acl_rule(role, cluster=True).replace("PASSWORD", "secret").split())
    hosts = nodes.url.partition("://")[2]
    users = [f"redis+cluster://headrace-{role}:secret@{hosts}" for role in ("api", "worker")]
    async with opened(settings_for(users[0], tmp_path)) as api, opened(settings_for(users[1], tmp_path)) as worker:
        await api.start()
        request = await cancelled(api)
        assert await answer(api, request.id)
        await worker.registry.beat(WorkerInfo(id="w", pid=1, model=MODEL, state="ready"))
        assert [info.id for info in await api.registry.workers()] == ["w"]
        await submit(api, make_request())
        [item] = (await worker.transport.pull(MODEL, "w", Room.all(1))).found
        assert isinstance(item, Delivery)
        [lease] = await worker.token_log.acquire([item.request.id], "w")
        assert lease is not None
        assert await write(worker, [lease], TokenEvent(0, (), DONE)) == [True]
        assert await answer(api, item.request.id) == [TokenEvent(0, (), DONE)]
        await worker.transport.acknowledge([item.claim])
    assert all(node.call("ACL", "LOG") == [] for node in nodes.primaries)


async def test_one_write_per_node(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    exchange = Pipe.exchange

    async def counted(pipe: Pipe, packed: Sequence[bytes]) -> list[object]:
        written.append(len(packed))
        return await exchange(pipe, packed)

    async with opened(settings) as backend:
        leases = [lease for _, lease in await hold(backend, 64)]
        assert all(await write(backend, leases, token_event(0, "a")))  # every node knows the script by now
        monkeypatch.setattr(Pipe, "exchange", counted)
        assert all(await write(backend, leases, token_event(1, "b")))
    assert (len(written), sum(written)) == (3, 64)


async def test_calls_follow_a_slot_that_moves(nodes: Nodes, settings: Settings) -> None:
    """Calls for a migrating slot follow ASK, TRYAGAIN and MOVED, in one batch with others."""
    async with opened(settings) as backend:
        held = await hold(backend, 16)
        leases = [lease for _, lease in held]
        moving = leases[0]
        others = [lease for lease in leases if lease is not moving]
        state, log = keys.state(moving.job_id), keys.log(moving.job_id)
        slot, source = slot_of(state), nodes.holder(state)
        target = next(node for node in nodes.primaries if node is not source)
        assert all(await write(backend, leases, token_event(0, "a")))
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", nodes.id(source))
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", nodes.id(target))
        try:
            source.call("MIGRATE", HOST, target.port, state, 0, LIMIT_MS)
            split = asyncio.create_task(write(backend, [moving, *others], token_event(1, "b")))
            await asyncio.sleep(0.1)  # the keys are on two nodes: TRYAGAIN, for as long as we leave it so
            assert not split.done()
            source.call("MIGRATE", HOST, target.port, log, 0, LIMIT_MS)
            assert await split == [True] * 16
            assert (await backend.token_log.record(moving.job_id)) is not None  # a single command, by ASK
        finally:
            for node in (target, source, *nodes.primaries):
                node.call("CLUSTER", "SETSLOT", slot, "NODE", nodes.id(target))
        assert await write(backend, leases, TokenEvent(2, (), DONE)) == [True] * 16
        expected = [token_event(0, "a"), token_event(1, "b"), TokenEvent(2, (), DONE)]
        assert await answer(backend, moving.job_id) == expected
        await move_back(nodes, slot, target, source, [state, log])


async def move_back(nodes: Nodes, slot: int, target: Node, source: Node, names: list[str]) -> None:
    source.call("CLUSTER", "SETSLOT", slot, "IMPORTING", nodes.id(target))
    target.call("CLUSTER", "SETSLOT", slot, "MIGRATING", nodes.id(source))
    for name in names:
        target.call("MIGRATE", HOST, source.port, name, 0, LIMIT_MS)
    for node in nodes.primaries:
        node.call("CLUSTER", "SETSLOT", slot, "NODE", nodes.id(source))


async def test_readers_of_a_node_that_hangs_go_to_another(nodes: Nodes, settings: Settings) -> None:
    """Live messages arrive over any node, and over the next when it hangs or dies."""
    async with opened(settings) as backend:
        [(_, lease)] = await hold(backend)
        async with aclosing(backend.token_log.follow(lease.job_id, idle=0.05)) as events:
            assert await anext(events) is None
            serving = next(n for n in nodes.all if "hr:live" in str(n.call("PUBSUB", "CHANNELS")))
            serving.call("CLIENT", "KILL", "TYPE", "pubsub")
            assert all(await write(backend, [lease], token_event(0, "a")))
            while (event := await anext(events)) is None:
                pass
            assert event == token_event(0, "a")


async def test_a_dead_primary_is_replaced_by_its_replica(nodes: Nodes, settings: Settings) -> None:
    """Must be the last test of this module: its primary returns as a replica."""
    async with opened(settings.model_copy(update={"redis_timeout": 1.5})) as backend:
        held = await hold(backend, 24)
        leases = [lease for _, lease in held]
        for item, _ in held:
            await backend.transport.acknowledge([item.claim])
        readers = [asyncio.create_task(collect(backend, lease.job_id)) for lease in leases]
        assert all(await write(backend, leases, token_event(0, "a")))
        assert nodes.primaries[2].call("WAIT", 1, LIMIT_MS) == 1
        nodes.replace_after(REPLACED_AFTER_MS, nodes.all)
        nodes.primaries[2].kill()
        refused = 0
        async with asyncio.timeout(LIMIT_S):
            for event in (token_event(1, "b"), TokenEvent(2, (), DONE)):
                while not await accepted(backend, leases, event):
                    refused += 1
                    await asyncio.sleep(0.05)
            answers = await asyncio.gather(*readers)
        assert refused > 0
        assert answers == [[token_event(0, "a"), token_event(1, "b"), TokenEvent(2, (), DONE)]] * 24
        await asyncio.to_thread(nodes.replace_after, LIMIT_MS, [*nodes.primaries[:2], nodes.replica])
        await whole_path(backend, 16)


async def accepted(backend: object, leases: list[Lease], event: TokenEvent) -> bool:
    try:
        assert all(await write(backend, leases, event))  # type: ignore[arg-type]
    except Unavailable:
        return False
    return True


async def test_a_single_server_is_refused_as_a_cluster(tmp_path: Path) -> None:
    node = Node(tmp_path / "plain")
    with running(node):
        async with opened(settings_for(f"redis+cluster://{HOST}:{node.port}", tmp_path)) as backend:
            assert isinstance(backend.redis, Cluster)
            with pytest.raises(ConfigError, match="not a node of a Cluster"):
                await backend.start()
