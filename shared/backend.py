"""Everything of a process that talks to Redis, opened from the settings and closed as one."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from shared.config import Settings
from shared.delivery.base import TokenLog
from shared.delivery.pubsub import LiveFeed
from shared.delivery.token_log import RedisTokenLog
from shared.redis_client import RedisServer
from shared.registry import Registry
from shared.transports.base import Transport
from shared.transports.redis_streams import RedisStreams

MISSED_BEATS = 3  # a worker beats three times in a lease, and is gone after as many missed


@dataclass(frozen=True)
class Backend:
    """The queue, the answers, the live messages and the list of workers."""

    server: RedisServer
    live: LiveFeed
    transport: Transport
    token_log: TokenLog
    registry: Registry

    @classmethod
    def open(cls, settings: Settings) -> Backend:
        """Connects lazily; `start` is what checks that the server is there."""
        server = RedisServer.connect(settings.redis_url.get_secret_value(), timeout=settings.redis_timeout)
        live = LiveFeed(server)
        return cls(
            server=server,
            live=live,
            transport=RedisStreams(server, depth=settings.queue_depth, lease=settings.lease),
            token_log=RedisTokenLog(
                server,
                live,
                most_tokens=settings.log_tokens,
                request_ttl=settings.request_ttl,
                result_ttl=settings.result_ttl,
            ),
            registry=Registry(server, ttl=settings.lease * MISSED_BEATS),
        )

    @property
    def redis(self) -> Redis:
        return self.server.client

    async def start(self) -> None:
        """Raises Unavailable when the server does not answer."""
        async with self.server.reaching("Redis"):
            await self.redis.ping()

    async def close(self) -> None:
        await self.live.close()
        await self.redis.aclose(close_connection_pool=True)
