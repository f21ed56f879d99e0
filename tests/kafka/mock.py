"""librdkafka's mock cluster, and what it lacks: it takes a transaction's offsets and keeps none of them.

`keep_offsets` has a process commit them to the group after the transaction. So a mock shows what becomes of
offsets, not that they are of one piece with the results; and it shows aborted records to everybody.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from confluent_kafka import Producer
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import CommitFailedError

from shared.backend import Backend
from shared.config import Settings
from shared.errors import HeadraceError
from shared.protocol import Request
from shared.transports.base import Bounds, Ticket
from shared.transports.kafka import KafkaTransport
from shared.transports.redis_streams import RedisStreams

BROKER = os.environ.get("TEST_KAFKA", "")  # a real one, in its place
VERSION = "2.0"  # of the protocol that kafka-python and the mock both speak


def address(bootstrap: str) -> dict[str, str | None]:
    """The settings that lead there."""
    return {"kafka_bootstrap": bootstrap, "kafka_api_version": None if BROKER else VERSION}


def make_topics(bootstrap: str, *names: str) -> None:
    """On a real broker, of four partitions as the mock's; there they appear when used."""
    if not BROKER:
        return
    admin = KafkaAdminClient(bootstrap_servers=bootstrap.split(","))
    made = admin.create_topics({name: {"num_partitions": 4} for name in names}, raise_errors=False)
    assert made is not None
    admin.close()


class MockCluster:
    """One broker in this process; topics, of four partitions, appear when used."""

    def __init__(self) -> None:
        self._producer = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": "1", "log_level": 0})
        [broker] = self._producer.list_topics(timeout=10).brokers.values()
        self.bootstrap = f"{broker.host}:{broker.port}"


@functools.cache
def cluster() -> MockCluster:
    """This process's."""
    return MockCluster()


def keep_offsets() -> None:
    """In this process, from now on: beside the group's own, which the mock refuses to take while it rebalances."""
    consumers: weakref.WeakValueDictionary[str, KafkaConsumer] = weakref.WeakValueDictionary()
    pending: dict[int, tuple[Any, dict[Any, Any]]] = {}
    kept: dict[tuple[str, Any], Any] = {}
    metadata, committed = KafkaConsumer.group_metadata, KafkaConsumer.committed
    send, commit = KafkaProducer.send_offsets_to_transaction, KafkaProducer.commit_transaction

    def group_metadata(self: KafkaConsumer) -> Any:
        found = metadata(self)
        consumers[found.member_id] = self
        return found

    def send_offsets(self: KafkaProducer, offsets: dict[Any, Any], group: Any) -> None:
        send(self, offsets, group)
        pending[id(self)] = (group, offsets)

    def commit_transaction(self: KafkaProducer) -> None:
        commit(self)
        group, offsets = pending.pop(id(self))
        kept.update({(group.group_id, place): offset for place, offset in offsets.items()})
        with suppress(CommitFailedError):
            consumers[group.member_id].commit(offsets, timeout_ms=5_000)

    def known(self: KafkaConsumer, place: Any, **options: Any) -> Any:
        found = committed(self, place, **options)
        mine = kept.get((self.config["group_id"], place))
        return mine if mine is not None and (found is None or mine.offset >= found.offset) else found

    KafkaConsumer.group_metadata, KafkaConsumer.committed = group_metadata, known
    KafkaProducer.send_offsets_to_transaction = send_offsets
    KafkaProducer.commit_transaction = commit_transaction


class Moved(KafkaTransport):
    """As if a worker took each record from its topic at once."""

    async def publish_many(self, requests: Sequence[Request]) -> list[Ticket | HeadraceError]:
        places = await super().publish_many(requests)
        written = [request for request, place in zip(requests, places, strict=True) if isinstance(place, Ticket)]
        await RedisStreams.publish_many(self, written)
        return places


def moved(backend: Backend, settings: Settings, writer: KafkaProducer) -> Backend:
    assert backend.server is not None
    transport = Moved(backend.server, bounds=Bounds.of(settings), lease=settings.lease, writer=writer)
    return replace(backend, transport=transport)
