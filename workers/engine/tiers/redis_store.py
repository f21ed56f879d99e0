"""Store in Redis, which all workers share: strings that expire, and sorted sets that bound their number."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from redis.exceptions import ResponseError

from shared.errors import HeadraceError
from shared.redis import keys as names
from shared.redis.client import RedisServer
from shared.redis.node import pack
from shared.redis.script import Script
from workers.engine.tiers.store import StoreFailed, Value

PARTS = 16  # slots over which the values are spread, on a Cluster
TIMEOUT_S = 1.0  # of one call, which transfers a few megabytes
LOOKUPS = 256  # in one round trip

T = TypeVar("T")


class RedisStore:
    """Values in Redis; see `Store`. A thread of its own runs the connection.

    Args:
        scope: separates the values of workers that compute other bits.
        value_bytes: size of every value.
        budget: most bytes of values of this scope.
        ttl: seconds that an unused value is kept.

    Raises:
        ConfigError: the URL is not valid.
    """

    name = "redis"

    def __init__(
        self, url: str, scope: str, value_bytes: int, *, budget: int, ttl: float, timeout: float = TIMEOUT_S
    ) -> None:
        self._server = RedisServer.connect(url, timeout=timeout)
        self._script = Script(self._server, "kv_tier", Path(__file__).with_suffix(".lua"))
        self._scope = scope
        self._most = max(1, budget // (PARTS * value_bytes))  # values of a part
        self._ttl = int(ttl * 1000)
        self._loop = uvloop.new_event_loop()
        threading.Thread(target=_run, args=(self._loop,), name="kv-tier-redis", daemon=True).start()
        self.close: Callable[[], object] = weakref.finalize(self, _stop, self._loop, self._server)

    def count(self, keys: Sequence[bytes]) -> int:
        found = 0
        while found < len(keys):
            part = keys[found : found + LOOKUPS]
            replies = self._wait(_exchange(self._server, [("EXISTS", self._value(key)) for key in part]))
            there = next((number for number, reply in enumerate(replies) if reply != 1), len(part))
            found += there
            if there < len(part):
                break
        return found

    def get(self, keys: Sequence[bytes]) -> list[Value | None]:
        replies = self._wait(_exchange(self._server, [("GET", self._value(key)) for key in keys]))
        return [reply if reply is None or isinstance(reply, bytes) else b"" for reply in replies]

    def keep(self, keys: Sequence[bytes]) -> list[bool]:
        calls = [(self._keys(key), (key.hex(), self._ttl)) for key in keys]
        return [reply == 1 for reply in self._wait(_call(self._server, self._script, "keep", calls))]

    def put(self, key: bytes, value: Value) -> bool:
        self._wait(self._put(key, value))
        return True

    async def _put(self, key: bytes, value: Value) -> None:
        """Enter the value's name into the index, then write it: the bound holds if this process dies in between.

        The value is not part of the script's call, since Lua would copy it twice.
        """
        reservation = self._keys(key), (key.hex(), self._ttl, self._most)
        await _call(self._server, self._script, "reserve", [reservation])
        await _set(self._server, self._value(key), value, self._ttl)

    def drop(self, key: bytes) -> None:
        self._wait(_call(self._server, self._script, "drop", [(self._keys(key), (key.hex(), self._ttl))]))

    def _keys(self, key: bytes) -> list[str]:
        return [names.kv_index(self._scope, key[0] % PARTS), self._value(key)]

    def _value(self, key: bytes) -> str:
        return names.kv_value(self._scope, key[0] % PARTS, key.hex())

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call, which ends within the timeout of the server, in the loop's thread."""
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result(2 * self._server.timeout)
        except (HeadraceError, TimeoutError, concurrent.futures.CancelledError) as error:
            future.cancel()
            raise StoreFailed from error.__cause__ or error


async def _exchange(server: RedisServer, commands: list[tuple[str, str]]) -> list[Any]:
    """Return the replies; of a value of another type, its error."""
    async with server.reaching("the KV tier"):
        replies = await server.client.exchange([(key, pack(command, key)) for command, key in commands])
        for reply in replies:
            if isinstance(reply, Exception) and not (
                isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")
            ):
                raise reply
    return replies


async def _call(
    server: RedisServer, script: Script, command: str, calls: list[tuple[list[str], tuple[Any, ...]]]
) -> list[Any]:
    async with server.reaching("the KV tier"):
        return await script.many(command, calls)


async def _set(server: RedisServer, name: str, value: Value, ttl: int) -> None:
    """Write a value for `ttl` ms. The command is joined here with one copy of the value; hiredis makes three."""
    head, end = f"*5\r\n$3\r\nSET\r\n${len(name)}\r\n{name}\r\n${len(value)}\r\n", str(ttl)
    tail = f"\r\n$2\r\nPX\r\n${len(end)}\r\n{end}\r\n"
    async with server.reaching("the KV tier"):
        [reply] = await server.client.exchange([(name, b"".join((head.encode(), value, tail.encode())))])
        if isinstance(reply, Exception):
            raise reply


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop, server: RedisServer) -> None:
    """Close the connection, and end the loop's thread."""

    async def end() -> None:
        await server.client.aclose(close_connection_pool=True)
        loop.stop()

    loop.call_soon_threadsafe(lambda: loop.create_task(end()))
