"""The connection to Redis by itself: what goes wrong with it is said as ours."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from shared.embedded import HOST, EmbeddedServer
from shared.errors import Unavailable
from shared.redis_client import RedisServer
from tests.chaos.proxy import FaultProxy


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_was_reset_is_unavailable_once(valkey: EmbeddedServer, loop: object) -> None:
    """Given an open connection, if it is reset unnoticed, then one call is refused and the next goes through."""

    async def call_after_reset() -> None:
        async with FaultProxy(HOST, valkey.port).listening() as proxy:
            server = RedisServer.connect(valkey.url.replace(f":{valkey.port}/", f":{proxy.port}/"), timeout=2)
            await server.client.ping()
            proxy.cut()
            while proxy.connections:
                await asyncio.sleep(0)
            with pytest.raises(Unavailable, match="the queue cannot be reached"):
                async with server.reaching("the queue"):
                    await server.client.ping()
            async with server.reaching("the queue"):
                await server.client.ping()
            await server.client.aclose(close_connection_pool=True)

    with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]
        runner.run(call_after_reset())
