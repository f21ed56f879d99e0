"""The process's one connection for live messages, shared by all its readers.

Pub/sub is a wake-up, not the truth: a subscriber learns when it may have missed something, and then reads the log.
It knows nothing of what the messages mean.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from redis.asyncio import Connection
from redis.exceptions import RedisError

from shared import keys
from shared.delivery.subscription import Subscription
from shared.errors import Unavailable
from shared.redis_client import RETRY_AFTER, RedisServer
from shared.redis_node import arrived

SILENCE = 2.0  # seconds without a message after which the connection is probed
BACKOFF = (0.05, 0.1, 0.2, 0.5, 1.0)  # most seconds before a new attempt; at least half of it

log = structlog.get_logger(__name__)


class Channel:
    """A channel's readers, and whether the server has confirmed that it sends to us."""

    def __init__(self) -> None:
        self.readers: set[Subscription] = set()
        self.confirmed = asyncio.Event()
        self._lost = False

    def lose(self) -> None:
        """The connection is gone."""
        self.confirmed.clear()
        self._lost = True

    def confirm(self) -> None:
        """From now on nothing is missed; what came since the connection was lost was."""
        self.confirmed.set()
        if self._lost:
            self._lost = False
            for reader in self.readers:
                reader.miss()


class LiveFeed:
    """Subscribes on behalf of many readers over one connection, and reconnects with backoff.

    Args:
        server: gives the connection, and the time that a subscription may take to be confirmed.
    """

    def __init__(self, server: RedisServer) -> None:
        self._redis = server.client
        self._timeout = server.timeout
        self._channels: dict[bytes, Channel] = {}
        self._asked: Counter[bytes] = Counter()  # SUBSCRIBEs that the server has not confirmed, by channel
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def subscribe(self, name: str) -> AsyncIterator[Subscription]:
        """A subscription, confirmed by the server before the body runs. Raises Unavailable."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="live-feed")
        key = name.encode()
        reader = Subscription()
        channel = self._channels.get(key)
        new = channel is None
        if channel is None:
            channel = self._channels[key] = Channel()
        channel.readers.add(reader)
        try:
            await self._confirm(channel, key if new else None)
            yield reader
        finally:
            reader.close()
            channel.readers.discard(reader)
            if not channel.readers and self._channels.get(key) is channel:
                del self._channels[key]
                await self._send("UNSUBSCRIBE", key)

    async def _confirm(self, channel: Channel, new: bytes | None) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                if new is not None:
                    await self._send("SUBSCRIBE", new)
                await channel.confirmed.wait()
        except TimeoutError as error:
            raise Unavailable("live messages cannot be reached", retry_after=RETRY_AFTER) from error

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _send(self, command: str, key: bytes) -> None:
        """Without a connection there is nothing to do: a new one subscribes to all channels that it finds."""
        connection = self._connection
        if connection is None:
            return
        if command == "SUBSCRIBE":
            self._asked[key] += 1
        try:
            await connection.send_command(command, key)
        except BaseException as error:
            # redis-py has closed it, and would open it anew without our subscriptions if it were used again
            if self._connection is connection:
                self._connection = None
            if not isinstance(error, RedisError | OSError):
                raise
            log.debug("live_feed_send_failed")  # the reading side meets the same trouble and reconnects

    async def _run(self) -> None:
        failures = 0
        while True:
            connection = None
            try:
                async with asyncio.timeout(self._timeout):
                    connection = await self._redis.dedicated()
                    self._connection = connection
                    self._asked = Counter(self._channels.keys())
                    await connection.send_command("SUBSCRIBE", keys.LIVE, *self._channels)
                while True:
                    await self._receive(connection)
                    failures = 0
            except (RedisError, OSError) as error:
                log.warning("live_feed_lost", error=type(error).__name__)
            finally:
                self._connection = None
                if connection is not None:
                    await connection.disconnect(nowait=True)
            for channel in self._channels.values():
                channel.lose()
            wait = BACKOFF[min(failures, len(BACKOFF) - 1)]
            await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311  so that replicas do not come at once
            failures += 1

    async def _receive(self, connection: Connection) -> None:
        """Handle what has arrived; after SILENCE, probe, so that a dead peer shows as a timeout."""
        for reply in await arrived(connection, SILENCE) or [await self._probe(connection)]:
            self._handle(reply)

    def _handle(self, reply: Any) -> None:
        kind = reply[0]
        if kind == b"subscribe":
            self._asked[reply[1]] -= 1
            if self._asked[reply[1]] <= 0:
                del self._asked[reply[1]]
        channel = self._channels.get(reply[1])
        if channel is None:
            return
        if kind == b"message":
            for reader in channel.readers:
                reader.put(reply[2])
        elif kind == b"subscribe" and reply[1] not in self._asked:
            channel.confirm()  # else it was for a subscription that was given up in between

    async def _probe(self, connection: Connection) -> Any:
        if self._connection is not connection:
            raise ConnectionError("closed by a failed send")
        async with asyncio.timeout(self._timeout):
            await connection.send_command("PING")
            return await connection.read_response(disconnect_on_error=False)
