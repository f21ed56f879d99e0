"""Everything of a process that talks to Redis, opened from the settings and closed as one."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from shared.config import Settings
from shared.delivery.base import TokenLog
from shared.delivery.pubsub import LiveFeed
from shared.delivery.token_log import RedisTokenLog
from shared.redis_client import connect, reaching
from shared.registry import Registry
from shared.transports.base import Transport
from shared.transports.redis_streams import RedisStreams

MISSED_BEATS = 3  # a worker beats three times in a lease, and is gone after as many missed


@dataclass(frozen=True)
class Backend:
    """The queue, the answers, the live messages and the list of workers."""

    redis: Redis
    live: LiveFeed
    transport: Transport
    token_log: TokenLog
    registry: Registry

    @classmethod
    def open(cls, settings: Settings) -> Backend:
        """Connects lazily; `start` is what checks that the server is there."""
        redis = connect(settings.redis_url.get_secret_value(), timeout=settings.redis_timeout)
        live = LiveFeed(redis, timeout=settings.redis_timeout)
        return cls(
            redis=redis,
            live=live,
            transport=RedisStreams(redis, depth=settings.queue_depth, lease=settings.lease),
            token_log=RedisTokenLog(
                redis,
                live,
                most_tokens=settings.log_tokens,
                request_ttl=settings.request_ttl,
                result_ttl=settings.result_ttl,
            ),
            registry=Registry(redis, ttl=settings.lease * MISSED_BEATS),
        )

    async def start(self) -> None:
        """Raises Unavailable when the server does not answer."""
        async with reaching("Redis"):
            await self.redis.ping()

    async def close(self) -> None:
        await self.live.close()
        await self.redis.aclose(close_connection_pool=True)
