"""Queue that writes requests to Kafka and keeps their places in the lanes of Redis.

Publishing reserves a place in Redis and writes the request to the model's topic. A worker's intake turns the
reservation into a place in a lane; everything else works as in RedisStreams. A reservation counts against the
bounds of the queue. If its writer died before it was confirmed, the sweeper releases it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError

from shared.backend import Backend
from shared.errors import HeadraceError, Unavailable
from shared.kafka.connection import explained, producer, unavailable
from shared.kafka.error_counts import KafkaErrors
from shared.kafka.message import api_record
from shared.protocol import Request, Ticket
from shared.queue.interface import Bounds
from shared.queue.redis_streams import RedisStreams
from shared.redis.client import RedisServer
from shared.settings import Settings

WRITE_TIMEOUT_S = 1.2  # for the brokers to have a record on all replicas; admission waits a little longer
MAX_BLOCK_MS = 1_000  # how long a call may wait for a topic's metadata or for memory
RETRY_AFTER_S = 1.0

log = structlog.get_logger(__name__)


class KafkaQueue(RedisStreams):
    """RedisStreams whose requests pass through Kafka first.

    Args:
        server, bounds, lease: as for RedisStreams.
        writer: an open producer; the caller closes it.
        errors: counts failed writes.
    """

    def __init__(
        self, server: RedisServer, *, bounds: Bounds, lease: float, writer: KafkaProducer, errors: KafkaErrors
    ) -> None:
        super().__init__(server, bounds=bounds, lease=lease)
        self._writer = writer
        self._errors = errors

    async def publish_many(self, requests: Sequence[Request]) -> list[Ticket | HeadraceError]:
        places = await self.reserve(requests)
        promised = {place.job_id: place for place in places if isinstance(place, Ticket)}
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await asyncio.to_thread(self._write, [each for each in requests if each.id in promised])
        except (KafkaError, TimeoutError) as error:
            self._errors.note()
            log.warning("kafka_write_failed", error=explained(error))
            await self.confirm(list(promised.values()), written=False)
            raise Unavailable("Kafka cannot be reached", retry_after=RETRY_AFTER_S) from error
        await self.confirm(list(promised.values()), written=True)
        return places

    def _write(self, requests: Sequence[Request]) -> None:
        """Write the requests and wait until the brokers have all of them."""
        for sent in [self._writer.send(**api_record(each).arguments()) for each in requests]:
            sent.get(timeout=WRITE_TIMEOUT_S)


@asynccontextmanager
async def with_kafka_queue(backend: Backend, settings: Settings) -> AsyncIterator[Backend]:
    """Yield `backend` with a KafkaQueue. Raises ConfigError; Unavailable if no broker answers."""
    assert backend.server is not None, "this backend is in memory"
    try:
        writer = await asyncio.to_thread(producer, settings, max_block_ms=MAX_BLOCK_MS)
    except KafkaError as error:
        raise unavailable(error) from error
    try:
        errors = KafkaErrors()
        bounds = Bounds.from_settings(settings)
        transport = KafkaQueue(backend.server, bounds=bounds, lease=settings.lease, writer=writer, errors=errors)
        yield replace(backend, transport=transport, kafka_errors=errors)
    finally:
        await asyncio.to_thread(writer.close, timeout=2)
