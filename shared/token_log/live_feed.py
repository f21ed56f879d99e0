"""The process's one connection for live messages, shared by all its readers.

Pub/sub is a wake-up, not the truth: a subscriber learns when it may have missed something, and then reads the log.
It knows nothing of what the messages mean.
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
from shared.redis.client import RETRY_AFTER, RedisServer
from shared.redis.node import pack
from shared.redis.wire import Wire
from shared.token_log.subscription import Subscription

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


class _Feed(Wire):
    """One connection's messages; a refusal ends it.

    Args:
        handle: told of each.
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
    """Subscribes on behalf of many readers over one connection, and reconnects with backoff.

    Args:
        server: gives the connection, and the time that a subscription may take to be confirmed.
    """

    def __init__(self, server: RedisServer) -> None:
        self._redis = server.client
        self._timeout = server.timeout
        self._channels: dict[bytes, Channel] = {}
        self._asked: Counter[bytes] = Counter()  # SUBSCRIBEs that the server has not confirmed, by channel
        self._feed: _Feed | None = None
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
                self._send("UNSUBSCRIBE", key)

    async def _confirm(self, channel: Channel, new: bytes | None) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                if new is not None:
                    self._send("SUBSCRIBE", new)
                await channel.confirmed.wait()
        except TimeoutError as error:
            raise Unavailable("live messages cannot be reached", retry_after=RETRY_AFTER) from error

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _send(self, command: str, key: bytes) -> None:
        """Without a connection there is nothing to do: a new one subscribes to all channels that it finds."""
        if self._feed is not None:
            if command == "SUBSCRIBE":
                self._asked[key] += 1
            self._feed.send(pack(command, key))

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self._timeout):
                    connection = await self._redis.dedicated()
                self._feed = _Feed(connection, self._handle)
                self._asked = Counter(self._channels.keys())
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
            wait = BACKOFF[min(failures, len(BACKOFF) - 1)]
            await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311  so that replicas do not come at once
            failures += 1

    async def _watch(self, feed: _Feed) -> None:
        """Raise what ends the connection; after SILENCE, probe, so that a dead peer shows as a timeout."""
        if (left := SILENCE - feed.quiet()) > 0:
            await feed.stay(left)
            return
        before = feed.heard
        feed.send(pack("PING"))
        for _ in range(2):  # a machine that stood still meanwhile has slept through one wait, not through both
            await feed.stay(self._timeout / 2)
            if feed.heard > before:
                return
        raise TimeoutError("live messages' peer is silent")

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
