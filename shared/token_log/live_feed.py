"""The connection for live messages, one for all readers of a process.

Pub/sub messages only wake readers up. A subscriber learns when it may have missed some, and then reads the log.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from redis.asyncio import Connection
from redis.exceptions import RedisError

from shared.errors import Unavailable
from shared.redis import keys
from shared.redis.client import RETRY_AFTER_S, RedisServer
from shared.redis.node import pack
from shared.redis.wire import Wire
from shared.token_log.subscription import Subscription

PROBE_AFTER_S = 2.0  # without a message
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)  # before reconnecting; shortened at random by up to half

log = structlog.get_logger(__name__)


class Channel:
    """The readers of a channel, and whether the server has confirmed the subscription."""

    def __init__(self) -> None:
        self.readers: set[Subscription] = set()
        self.confirmed = asyncio.Event()
        self._lost = False

    def lose(self) -> None:
        """Mark the connection as lost."""
        self.confirmed.clear()
        self._lost = True

    def confirm(self) -> None:
        """Mark the subscription as confirmed; tell readers that they missed messages if the connection was lost."""
        self.confirmed.set()
        if self._lost:
            self._lost = False
            for reader in self.readers:
                reader.miss()


class _Feed(Wire):
    """Receiver of one connection's messages; an error reply closes it.

    Args:
        handle: called with each message.
    """

    def __init__(self, connection: Connection, handle: Callable[[Any], None]) -> None:
        super().__init__(connection)
        self._handle = handle

    def take(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self.abort(reply)
        else:
            self._handle(reply)


class LiveFeed:
    """Subscriptions of many readers over one connection, which is restored with backoff.

    Args:
        server: provides the connection, and the time in which a subscription must be confirmed.
    """

    def __init__(self, server: RedisServer) -> None:
        self._redis = server.client
        self._timeout = server.timeout
        self._channels: dict[bytes, Channel] = {}
        self._unconfirmed: Counter[bytes] = Counter()  # SUBSCRIBEs, by channel
        self._feed: _Feed | None = None
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def subscribe(self, name: str) -> AsyncIterator[Subscription]:
        """Subscribe; the server has confirmed it when the body runs. Raises Unavailable."""
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
                self._send("UNSUBSCRIBE", key)

    async def _confirm(self, channel: Channel, new: bytes | None) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                if new is not None:
                    self._send("SUBSCRIBE", new)
                await channel.confirmed.wait()
        except TimeoutError as error:
            raise Unavailable("Redis did not confirm a subscription in time", retry_after=RETRY_AFTER_S) from error

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _send(self, command: str, key: bytes) -> None:
        """Send a command if there is a connection; a new connection subscribes to all channels anyway."""
        if self._feed is not None:
            if command == "SUBSCRIBE":
                self._unconfirmed[key] += 1
            self._feed.send(pack(command, key))

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self._timeout):
                    connection = await self._redis.dedicated()
                self._feed = _Feed(connection, self._handle)
                self._unconfirmed = Counter(self._channels.keys())
                self._feed.send(pack("SUBSCRIBE", keys.LIVE, *self._channels))
                while True:
                    await self._watch(self._feed)
                    failures = 0
            except (RedisError, OSError) as error:
                log.warning("live_feed_lost", error=type(error).__name__)
            finally:
                feed, self._feed = self._feed, None
                if feed is not None:
                    await feed.close()
            for channel in self._channels.values():
                channel.lose()
            wait = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
            await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311  so that replicas do not reconnect at once
            failures += 1

    async def _watch(self, feed: _Feed) -> None:
        """Probe a silent connection. Raises the error with which it is lost, TimeoutError for a dead peer."""
        if (left := PROBE_AFTER_S - feed.quiet()) > 0:
            await feed.stay(left)
            return
        before = feed.heard
        feed.send(pack("PING"))
        for _ in range(2):  # a machine that stood still has slept through one wait, not through both
            await feed.stay(self._timeout / 2)
            if feed.heard > before:
                return
        raise TimeoutError("the connection for live messages is silent")

    def _handle(self, reply: Any) -> None:
        kind, channel = reply[0], self._channels.get(reply[1])
        if kind == b"message" and channel is not None:
            for reader in channel.readers:
                reader.put(reply[2])
        elif kind == b"subscribe":
            self._note_subscription(reply[1], channel)

    def _note_subscription(self, key: bytes, channel: Channel | None) -> None:
        """Confirm a subscription, unless it confirms one that was given up since."""
        self._unconfirmed[key] -= 1
        if self._unconfirmed[key] <= 0:
            del self._unconfirmed[key]
            if channel is not None:
                channel.confirm()
