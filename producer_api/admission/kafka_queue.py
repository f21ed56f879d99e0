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
from typing import Any

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError

from shared.backend import Backend
from shared.errors import HeadraceError, PayloadTooLarge, Unavailable
from shared.kafka.connection import SIZE_ERRORS, close_producer, explained, producer, unavailable
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
TOO_LARGE = PayloadTooLarge("the request is too large for its Kafka topic")
CLOSE_LIMIT_S = 2.0  # for the records of requests that were given up

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
                refused = await asyncio.to_thread(self._write, [each for each in requests if each.id in promised])
        except (KafkaError, TimeoutError) as error:
            self._errors.note()
            log.warning("kafka_write_failed", error=explained(error))
            await self.confirm(list(promised.values()), written=False)
            raise Unavailable("Kafka cannot be reached", retry_after=RETRY_AFTER_S) from error
        await self.confirm([each for each in promised.values() if each.job_id not in refused], written=True)
        await self.confirm([each for each in promised.values() if each.job_id in refused], written=False)
        return [TOO_LARGE if isinstance(place, Ticket) and place.job_id in refused else place for place in places]

    def _write(self, requests: Sequence[Request]) -> set[str]:
        """Write the requests, wait until the brokers have them, and return the ids of those that are too large."""
        refused, sent = set[str](), list[tuple[str, Any]]()
        for request in requests:
            try:
                sent.append((request.id, self._writer.send(**api_record(request).arguments())))
            except SIZE_ERRORS:
                refused.add(request.id)
        for job_id, future in sent:
            try:
                future.get(timeout=WRITE_TIMEOUT_S)
            except SIZE_ERRORS:
                refused.add(job_id)
        return refused


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
        await asyncio.to_thread(close_producer, writer, CLOSE_LIMIT_S)
