"""The stores that a process shares with others: in Redis, or in the memory of one process."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prometheus_client.registry import Collector
from redis.asyncio import Redis

from shared.accounts.audit_log import AuditLog, MemoryAuditLog, RedisAuditLog
from shared.adapters.store import AdapterStore, MemoryAdapterStore, RedisAdapterStore
from shared.dead_letters.memory import MemoryDeadLetters
from shared.dead_letters.store import DeadLetters, RedisDeadLetters
from shared.kafka.error_counts import KafkaErrors
from shared.locks.locks import Locks, RedisLocks
from shared.models.worker_registry import MemoryRegistry, RedisRegistry, Registry
from shared.queue.administration import (
    MemoryQueueAdministration,
    QueueAdministration,
    RedisQueueAdministration,
)
from shared.queue.interface import Bounds, Transport
from shared.queue.memory import MemoryTransport
from shared.queue.redis_streams import RedisStreams
from shared.queue.router import Router
from shared.redis.client import RedisServer
from shared.repository.memory_store import MemoryRepositoryStore
from shared.repository.redis_store import RedisRepositoryStore
from shared.repository.store import RepositoryStore
from shared.repository.traffic.store import MemoryTrafficStore, RedisTrafficStore, TrafficStore
from shared.settings import Settings
from shared.token_log.interface import Live, TokenLog
from shared.token_log.live_feed import LiveFeed
from shared.token_log.memory import MemoryLive, MemoryLocks, MemoryTokenLog
from shared.token_log.redis import RedisTokenLog
from shared.tracing.interface import Tracer
from shared.webhooks.interface import Webhooks
from shared.webhooks.memory import MemoryWebhooks
from shared.webhooks.store import RedisWebhooks


@dataclass(frozen=True)
class Backend:
    """The queue, its operators' side and its router, the audit log, the token logs, the live messages, the workers,
    the models of the repository, the splits of traffic, the LoRA adapters, the locks, the dead letters and the
    webhooks.

    `tracer` is None where tracing is off.
    """

    live: Live
    transport: Transport
    queues: QueueAdministration
    audit: AuditLog
    token_log: TokenLog
    registry: Registry
    repository: RepositoryStore
    traffic: TrafficStore
    adapters: AdapterStore
    router: Router
    locks: Locks
    dead_letters: DeadLetters
    webhooks: Webhooks
    server: RedisServer | None = None
    limits: RedisServer | None = None  # counts limits and usage, within `rate_limit_timeout`
    kafka_errors: KafkaErrors | None = None  # of a queue that passes through Kafka
    tracer: Tracer | None = None

    @classmethod
    def open(cls, settings: Settings, tracer: Tracer | None = None) -> Backend:
        """Return a backend on Redis, which closes `tracer` with it.

        It connects lazily; `start` checks that the server answers.
        """
        server = RedisServer.connect(settings.redis_url.get_secret_value(), timeout=settings.redis_timeout)
        live = LiveFeed(server)
        other = settings.limits_redis_url
        limits = RedisServer.connect(other.get_secret_value(), timeout=1) if other is not None else server
        registry = RedisRegistry(server, lease=settings.lease)
        router = Router(registry, settings)
        bounds = Bounds.from_settings(settings)
        return cls(
            live=live,
            transport=RedisStreams(server, bounds=bounds, lease=settings.lease, router=router),
            queues=RedisQueueAdministration(server),
            audit=RedisAuditLog(server),
            token_log=RedisTokenLog(
                server,
                live,
                most_tokens=settings.log_tokens,
                max_attempts=settings.max_attempts,
                request_ttl=settings.request_ttl,
                result_ttl=settings.result_ttl,
            ),
            registry=registry,
            repository=RedisRepositoryStore(server, lease=settings.lease),
            traffic=RedisTrafficStore(server),
            adapters=RedisAdapterStore(server),
            router=router,
            locks=RedisLocks(server),
            dead_letters=RedisDeadLetters(server, most=settings.dead_letters, ttl=settings.dead_letter_ttl),
            webhooks=RedisWebhooks(server, keep=settings.result_ttl),
            server=server,
            limits=replace(
                limits, timeout=settings.rate_limit_timeout, foreign=server.foreign, errors=server.errors
            ),
            tracer=tracer,
        )

    @classmethod
    def memory(cls, settings: Settings) -> Backend:
        """Return a backend in the memory of this process, which no other process sees and nothing outlives."""
        live, registry = MemoryLive(), MemoryRegistry()
        router = Router(registry, settings)
        bounds = Bounds.from_settings(settings)
        transport = MemoryTransport(live, bounds=bounds, lease=settings.lease, router=router)
        return cls(
            live=live,
            transport=transport,
            queues=MemoryQueueAdministration(transport),
            audit=MemoryAuditLog(),
            token_log=MemoryTokenLog(
                live,
                most_tokens=settings.log_tokens,
                max_attempts=settings.max_attempts,
                request_ttl=settings.request_ttl,
                result_ttl=settings.result_ttl,
            ),
            registry=registry,
            repository=MemoryRepositoryStore(live.publish),
            traffic=MemoryTrafficStore(),
            adapters=MemoryAdapterStore(live.publish),
            router=router,
            locks=MemoryLocks(),
            dead_letters=MemoryDeadLetters(most=settings.dead_letters, ttl=settings.dead_letter_ttl),
            webhooks=MemoryWebhooks(keep=settings.result_ttl),
        )

    @property
    def redis(self) -> Redis:
        assert self.server is not None, "this backend is in memory"
        return self.server.client

    def collectors(self) -> list[Collector]:
        """Return the metrics of the router, of the server and of Kafka, for a registry of Prometheus."""
        server = (self.server.foreign, self.server.errors) if self.server is not None else ()
        return [self.router, *server, *((self.kafka_errors,) if self.kafka_errors is not None else ())]

    async def start(self) -> None:
        """Check that the server answers. Raises Unavailable."""
        if self.server is not None:
            async with self.server.reaching("Redis"):
                await self.redis.ping()

    async def close(self) -> None:
        await self.live.close()
        for server in (self.server, self.limits):
            if server is not None:
                await server.client.aclose(close_connection_pool=True)
        if self.tracer is not None:
            await self.tracer.close()
