"""A single server: over TLS or a socket, with a user; hung, dead, half-open and restarted."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared.backend import Backend
from shared.errors import Unavailable
from shared.protocol import TokenEvent
from shared.redis.embedded import EmbeddedServer
from shared.token_log.subscription import MISSED
from tests.support.certificates import make
from tests.support.fakes import token_event
from tests.support.redis_path import DONE, collect, hold, whole_path, write
from tests.support.redis_servers import HOST, Node, Proxy, opened, running, settings_for
from tests.support.waiting import LIMIT_S, ticking

TIMEOUT_S = 1.0  # redis_timeout of these tests


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "node", f"unixsocket {tmp_path}/v.sock", "user me on >secret ~hr:* &hr:* +@all")
    with running(made):
        yield made


@asynccontextmanager
async def refused_in_time() -> AsyncIterator[None]:
    """Expect Unavailable within the configured timeout."""
    with pytest.raises(Unavailable):
        async with ticking() as ticks:
            yield
    assert ticks.seconds < 2 * TIMEOUT_S


async def test_over_a_socket_as_a_user(node: Node, tmp_path: Path) -> None:
    async with opened(settings_for(f"unix://me:secret@{tmp_path}/v.sock", tmp_path)) as backend:
        await whole_path(backend)


@pytest.mark.parametrize("user", ["me:wrong", "stranger:secret"])
async def test_a_wrong_password_is_told_without_it(node: Node, tmp_path: Path, user: str) -> None:
    async with opened(settings_for(f"redis://{user}@{HOST}:{node.port}", tmp_path)) as backend:
        with pytest.raises(Unavailable, match="refused the user or the password") as refused:
            await backend.start()
    assert user.partition(":")[2] not in refused.value.message.removesuffix(" of redis_url").split()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a CA, and a server certificate for localhost signed by it."""
    return make(tmp_path_factory.mktemp("tls"), "localhost")


@pytest.mark.parametrize(
    ("host", "options", "trusted"),
    [
        ("localhost", "?ssl_ca_certs={ca}", True),
        ("localhost", "", False),  # an unknown CA
        (HOST, "?ssl_ca_certs={ca}", False),  # another name than the certificate's
        (HOST, "?ssl_ca_certs={ca}&ssl_check_hostname=false", True),
    ],
)
async def test_tls_trusts_the_right_server_only(
    node: Node, certificates: Path, tmp_path: Path, host: str, options: str, trusted: bool
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    async with Proxy(node.port).listening(context) as proxy:
        url = f"rediss://me:secret@{host}:{proxy.port}/0{options.format(ca=certificates / 'ca.pem')}"
        async with opened(settings_for(url, tmp_path)) as backend:
            if trusted:
                await whole_path(backend, 2)
            else:
                with pytest.raises(Unavailable):
                    await backend.start()


@pytest.mark.slow
async def test_a_hung_server_is_unavailable_in_time_and_heals(node: Node, tmp_path: Path) -> None:
    async with opened(settings_for(node.url, tmp_path, redis_timeout=TIMEOUT_S)) as backend:
        [(item, lease)] = await hold(backend)
        await backend.transport.acknowledge([item.claim])
        with node.hung():
            async with refused_in_time():
                await write(backend, [lease], token_event(0, "a"))
            async with refused_in_time():  # on a new connection, which the kernel accepts
                await backend.token_log.record(lease.job_id)
            async with refused_in_time(), backend.live.subscribe("hr:any"):
                pass
        await whole_path(backend)


async def test_a_half_open_peer_is_unavailable_in_time_and_heals(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.token_log.live_feed.PROBE_AFTER_S", 0.3)
    async with (
        Proxy(node.port).listening() as proxy,
        opened(
            settings_for(f"redis://me:secret@{HOST}:{proxy.port}", tmp_path, redis_timeout=TIMEOUT_S)
        ) as backend,
    ):
        await whole_path(backend)
        async with backend.live.subscribe("hr:any") as live:
            connections = proxy.accepted
            proxy.silent = True
            async with refused_in_time():
                await backend.start()
            async with asyncio.timeout(LIMIT_S):
                while proxy.accepted < connections + 2:  # the live connection was swallowed again, and given up
                    await asyncio.sleep(0.01)
            proxy.silent = False
            await healed(backend)
            assert await live.get(LIMIT_S) is MISSED  # what came in between
            await whole_path(backend)


async def test_a_name_lookup_that_hangs_is_unavailable_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait())
    try:
        async with opened(settings_for("redis://cache:6379", tmp_path, redis_timeout=TIMEOUT_S)) as backend:
            async with refused_in_time():
                await backend.start()
            async with refused_in_time(), backend.live.subscribe("hr:any"):
                pass
    finally:
        answered.set()


async def test_a_restart_under_load_loses_nothing(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "valkey", appendfsync="always")
    server.start()
    try:
        async with opened(settings_for(server.url, tmp_path, redis_timeout=TIMEOUT_S)) as backend:
            leases = [lease for _, lease in await hold(backend, 16)]
            async with asyncio.TaskGroup() as tasks:
                readers = [tasks.create_task(collect(backend, lease.job_id)) for lease in leases]
                written: asyncio.Queue[int] = asyncio.Queue()
                writer = tasks.create_task(write_all(backend, leases, 400, written))
                while await written.get() < 100:
                    pass
                server.kill()
                await asyncio.to_thread(server.start)
                before = written.qsize()
                async with ticking() as ticks:
                    while written.qsize() <= before and not writer.done():
                        await asyncio.sleep(0.01)
                assert ticks.seconds < 5
            expected = [token_event(seq, "x") for seq in range(400)] + [TokenEvent(400, (), DONE)]
            assert all(reader.result() == expected for reader in readers)
    finally:
        server.stop()


async def write_all(backend: Backend, leases: list, number: int, written: asyncio.Queue[int]) -> None:
    """Repeat an append until it is accepted, as a worker does."""
    for seq in range(number + 1):
        event = token_event(seq, "x") if seq < number else TokenEvent(seq, (), DONE)
        while True:
            try:
                assert all(await write(backend, leases, event))
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        written.put_nowait(seq)
        await asyncio.sleep(0)


async def test_many_calls_survive_a_server_that_forgot_the_script(node: Node, tmp_path: Path) -> None:
    async with opened(settings_for(node.url, tmp_path)) as backend:
        leases = [lease for _, lease in await hold(backend, 32)]
        node.call("SCRIPT", "FLUSH")
        assert await write(backend, leases, token_event(0, "a")) == [True] * 32


async def test_a_repeated_subscription_needs_its_own_confirmation(node: Node, tmp_path: Path) -> None:
    """A subscription that is cancelled before its confirmation and repeated is confirmed by the second reply."""
    async with (
        Proxy(node.port).listening() as proxy,
        opened(settings_for(f"redis://{HOST}:{proxy.port}", tmp_path, redis_timeout=TIMEOUT_S)) as backend,
        backend.live.subscribe("hr:other"),
    ):
        proxy.replies.clear()
        early = asyncio.create_task(enter(backend, "hr:again"))
        async with asyncio.timeout(LIMIT_S):
            while "hr:again" not in str(node.call("PUBSUB", "CHANNELS")):
                await asyncio.sleep(0.01)
        proxy.requests.clear()
        early.cancel()
        await asyncio.gather(early, return_exceptions=True)
        second = asyncio.create_task(enter(backend, "hr:again"))
        proxy.replies.set()
        with pytest.raises(Unavailable):
            await second
        proxy.requests.set()
        await enter(backend, "hr:again")


async def healed(backend: Backend) -> None:
    """Wait until live messages arrive again."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await enter(backend, "hr:healed")
            except Unavailable:
                await asyncio.sleep(0.05)


async def enter(backend: Backend, channel: str) -> None:
    async with backend.live.subscribe(channel):
        pass
