"""The process's one connection for live messages, shared by all its readers.

Pub/sub is a wake-up, not the truth: a subscriber learns when it may have missed something, and then reads the log.
It knows nothing of what the messages mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from redis.asyncio import Connection

from shared import keys
from shared.delivery.subscription import Subscription
from shared.errors import Unavailable
from shared.redis_client import RETRY_AFTER, TROUBLE, RedisServer

SILENCE = 5.0  # seconds without a message after which the connection is probed
BACKOFF = (0.05, 0.1, 0.2, 0.5, 1.0)

log = structlog.get_logger(__name__)


class Channel:
    """A channel's readers, and whether the server has confirmed that it sends to us."""

    def __init__(self) -> None:
        self.readers: set[Subscription] = set()
        self.confirmed = asyncio.Event()


class LiveFeed:
    """Subscribes on behalf of many readers over one connection, and reconnects with backoff.

    Args:
        server: gives the connection, and the time that a subscription may take to be confirmed.
    """

    def __init__(self, server: RedisServer) -> None:
        self._pool = server.client.connection_pool
        self._timeout = server.timeout
        self._channels: dict[bytes, Channel] = {}
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def subscribe(self, name: str) -> AsyncIterator[Subscription]:
        """A subscription, confirmed by the server before the body runs. Raises Unavailable."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="live-feed")
        key = name.encode()
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel()
            await self._send("SUBSCRIBE", key)
        reader = Subscription()
        channel.readers.add(reader)
        try:
            await self._confirm(channel)
            yield reader
        finally:
            channel.readers.discard(reader)
            if not channel.readers and self._channels.get(key) is channel:
                del self._channels[key]
                await self._send("UNSUBSCRIBE", key)

    async def _confirm(self, channel: Channel) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await channel.confirmed.wait()
        except TimeoutError as error:
            raise Unavailable("live messages cannot be reached", retry_after=RETRY_AFTER) from error

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _send(self, *command: bytes | str) -> None:
        """Without a connection there is nothing to do: a new one subscribes to all channels that it finds."""
        if self._connection is not None:
            try:
                await self._connection.send_command(*command)
            except TROUBLE:
                log.debug("live_feed_send_failed")  # the reading side meets the same trouble and reconnects

    async def _run(self) -> None:
        failures = 0
        while True:
            connection = None
            try:
                connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
                self._connection = connection
                await connection.send_command("SUBSCRIBE", keys.LIVE, *self._channels)
                while True:
                    await self._receive(connection)
                    failures = 0
            except TROUBLE as error:
                log.warning("live_feed_lost", error=type(error).__name__)
            finally:
                self._connection = None
                if connection is not None:
                    await connection.disconnect(nowait=True)
                    await self._pool.release(connection)
            for channel in self._channels.values():
                channel.confirmed.clear()
                for reader in channel.readers:
                    reader.miss()
            await asyncio.sleep(BACKOFF[min(failures, len(BACKOFF) - 1)])
            failures += 1

    async def _receive(self, connection: Connection) -> None:
        """Handle one reply; after SILENCE, probe, so that a dead peer shows as a timeout."""
        reply = await self._read(connection, SILENCE)
        if reply is None:
            await connection.send_command("PING")
            reply = await self._read(connection, self._timeout)
        if reply is None:
            raise ConnectionError("no answer to a probe")
        kind = reply[0]
        channel = self._channels.get(reply[1])
        if channel is None:
            return
        if kind == b"message":
            for reader in channel.readers:
                reader.put(reply[2])
        elif kind == b"subscribe":
            channel.confirmed.set()

    async def _read(self, connection: Connection, limit: float) -> Any:
        """A reply, or None after `limit` seconds."""
        return await connection.read_response(timeout=limit, disconnect_on_error=False)
