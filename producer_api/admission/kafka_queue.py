"""Kafka before the lanes: what the API publishes is reserved in Redis and written to the model's topic.

A worker's intake turns the reservation into a place in its lane. All else is the lanes' own. A reservation counts
against the bounds like what waits; one whose writer died before it was confirmed is given back by the sweeper.
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
from shared.kafka.message import api_record
from shared.protocol import Request, Ticket
from shared.queue.interface import Bounds
from shared.queue.redis_streams import RedisStreams
from shared.redis.client import RedisServer
from shared.settings import Settings

WRITTEN = 1.2  # seconds that the brokers may take to have a record on all replicas; admission waits a little longer
BLOCKED = 1_000  # ms that a call may wait for a topic's metadata or for memory
RETRY_AFTER = 1.0

log = structlog.get_logger(__name__)


class KafkaTransport(RedisStreams):
    """The lanes, with Kafka before them.

    Args:
        server, bounds, lease: as of RedisStreams.
        writer: opened, closed by whoever opened it.
    """

    def __init__(self, server: RedisServer, *, bounds: Bounds, lease: float, writer: KafkaProducer) -> None:
        super().__init__(server, bounds=bounds, lease=lease)
        self._writer = writer

    async def publish_many(self, requests: Sequence[Request]) -> list[Ticket | HeadraceError]:
        places = await self.reserve(requests)
        promised = {place.job_id: place for place in places if isinstance(place, Ticket)}
        try:
            async with asyncio.timeout(WRITTEN):
                await asyncio.to_thread(self._write, [each for each in requests if each.id in promised])
        except (KafkaError, TimeoutError) as error:
            log.warning("kafka_write_failed", error=explained(error))
            await self.confirm(list(promised.values()), written=False)
            raise Unavailable("Kafka cannot be reached", retry_after=RETRY_AFTER) from error
        await self.confirm(list(promised.values()), written=True)
        return places

    def _write(self, requests: Sequence[Request]) -> None:
        """Until the brokers have all."""
        for sent in [self._writer.send(**api_record(each).arguments()) for each in requests]:
            sent.get(timeout=WRITTEN)


@asynccontextmanager
async def through_kafka(backend: Backend, settings: Settings) -> AsyncIterator[Backend]:
    """`backend` with Kafka before its lanes. Raises Unavailable where no broker answers, ConfigError."""
    assert backend.server is not None, "this backend is in memory"
    try:
        writer = await asyncio.to_thread(producer, settings, max_block_ms=BLOCKED)
    except KafkaError as error:
        raise unavailable(error) from error
    try:
        transport = KafkaTransport(
            backend.server, bounds=Bounds.from_settings(settings), lease=settings.lease, writer=writer
        )
        yield replace(backend, transport=transport)
    finally:
        await asyncio.to_thread(writer.close, timeout=2)
