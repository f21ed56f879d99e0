"""Faults of the shared connection to Redis, and the callers that they affect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress

import pytest
import uvloop

from shared.errors import Unavailable
from shared.redis.client import RedisServer
from shared.redis.embedded import HOST, EmbeddedServer
from shared.redis.multiplexer import MAX_SHARED_BYTES
from shared.redis.node import pack
from tests.support.proxy import FaultProxy

TIMEOUT = 2.0

Check = Callable[[FaultProxy, RedisServer], Coroutine[None, None, None]]


def on_either_loop(check: Check) -> Callable[..., None]:
    """Run `check` with a client behind a proxy, on asyncio's loop and on uvloop's."""

    async def checked(valkey: EmbeddedServer) -> None:
        async with FaultProxy(HOST, valkey.port).listening() as proxy:
            server = RedisServer.connect(behind(proxy, valkey), timeout=TIMEOUT)
            await server.client.ping()
            await check(proxy, server)
            await server.client.aclose()

    @pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
    def test(valkey: EmbeddedServer, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(checked(valkey))

    test.__doc__ = check.__doc__
    return test


@on_either_loop
async def test_an_idle_connection_that_was_reset_costs_no_call(proxy: FaultProxy, server: RedisServer) -> None:
    proxy.cut()
    while proxy.connections:
        await asyncio.sleep(0)
    async with server.reaching("the queue"):
        await server.client.ping()


@on_either_loop
async def test_concurrent_calls_share_a_write(proxy: FaultProxy, server: RedisServer) -> None:
    link, writes = server.client._pipe._link, list[bytes]()
    assert link is not None
    send = link.send
    link.send = lambda packed: (writes.append(bytes(packed)), send(packed))[1]  # type: ignore[method-assign]
    large = b"x" * MAX_SHARED_BYTES
    replies = await asyncio.gather(*(server.client.exchange([("", pack("ECHO", text))]) for text in ("a", "b")))
    assert (replies, len(writes)) == ([[b"a"], [b"b"]], 1)
    await asyncio.gather(*(server.client.exchange([("", pack("ECHO", large))]) for _ in range(2)))
    assert len(writes) == 3  # the server gets the first part of many calls while the others are made


@on_either_loop
async def test_a_reset_connection_fails_only_the_calls_on_it(proxy: FaultProxy, server: RedisServer) -> None:
    """Calls waiting for replies fail at once when the connection is reset; the next call succeeds."""
    proxy.to_client.hold()
    calls = [asyncio.create_task(ping(server)) for _ in range(3)]
    while len(server.client._pipe._link._waiting) < 3:  # type: ignore[union-attr]
        await asyncio.sleep(0)
    proxy.cut()
    for call in calls:
        with pytest.raises(Unavailable, match="the queue cannot be reached: ConnectionError"):
            await call
    proxy.heal()
    await ping(server)
    assert proxy.connections == 1


@on_either_loop
async def test_cancelled_callers_do_not_disturb_others_replies(proxy: FaultProxy, server: RedisServer) -> None:
    """If every third caller of a connection is cancelled, the others get their own replies and errors, in order."""

    async def ask(server: RedisServer, number: int) -> list[object]:
        commands = [pack("ECHO", f"{number}.{part}") for part in range(number % 4)] + [pack("NO", "SUCH")]
        return await server.client.exchange([("", command) for command in commands])

    proxy.to_client.split = 7
    calls = [asyncio.create_task(ask(server, number)) for number in range(60)]
    await asyncio.sleep(0)
    for call in calls[::3]:
        call.cancel()
    for number, call in enumerate(calls):
        if number % 3 == 0:
            with pytest.raises(asyncio.CancelledError):
                await call
            continue
        *echoes, refused = await call
        assert echoes == [f"{number}.{part}".encode() for part in range(number % 4)]
        assert "unknown command" in str(refused)
    assert await server.client.exchange([]) == []
    assert proxy.connections == 1


@on_either_loop
async def test_a_silent_peer_is_replaced_by_a_new_connection(proxy: FaultProxy, server: RedisServer) -> None:
    """Calls on a half-open connection time out; later ones succeed."""
    proxy.halve()
    waiting = [asyncio.create_task(ping(server)) for _ in range(3)]
    for call in waiting:
        with pytest.raises(Unavailable, match="TimeoutError"):
            await call
    proxy.to_server.lost = proxy.to_client.lost = False
    await ping(server)


@on_either_loop
async def test_a_slow_reply_costs_the_connection_nothing(proxy: FaultProxy, server: RedisServer) -> None:
    """A caller that gives up early does not close a connection that answers others."""
    before = await server.client.client_id()
    proxy.to_client.hold()
    with pytest.raises(Unavailable, match="TimeoutError"):
        await ping(hasty := RedisServer(server.client, timeout=0.05))
    assert {kind: count for kind, count in hasty.errors.counts.items() if count} == {"timeout": 1}
    proxy.to_client.release()
    assert await server.client.client_id() == before


def test_a_peer_without_a_handshake_is_given_up(valkey: EmbeddedServer) -> None:
    """A lost handshake is Unavailable in time; later calls use a new connection."""

    async def checked() -> None:
        async with FaultProxy(HOST, valkey.port).listening() as proxy:
            proxy.halve()
            server = RedisServer.connect(behind(proxy, valkey), timeout=0.2)
            with pytest.raises(Unavailable, match="the queue cannot be reached: TimeoutError"):
                await ping(server)
            proxy.to_server.lost = proxy.to_client.lost = False
            patient = RedisServer(server.client, timeout=TIMEOUT)
            with suppress(Unavailable):  # it may have joined the attempt that was about to be given up
                await ping(patient)
            await ping(patient)
            await server.client.aclose()

    asyncio.run(checked())


async def ping(server: RedisServer) -> None:
    async with server.reaching("the queue"):
        await server.client.ping()


def behind(proxy: FaultProxy, valkey: EmbeddedServer) -> str:
    return valkey.url.replace(f":{valkey.port}/", f":{proxy.port}/")
