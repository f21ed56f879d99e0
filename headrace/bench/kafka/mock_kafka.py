"""librdkafka's mock cluster, for measurements and tests without a broker, and what it lacks.

It takes a transaction's offsets and keeps none of them; it breaks the checksums of transactions; it lets a group
wait for nearly a session's time whenever its members change; it wakes no fetch that waits for records; and it shows
aborted records to everybody. `adapt` has a process keep the offsets in Redis, look at no checksums, and have short
fetches. So a mock shows what becomes of offsets, not that they are of one piece with the results.

`python -m headrace.cli.mock_kafka …` is the command line of headrace, adapted.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import redis
from confluent_kafka import Producer
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata

from shared.kafka.client_internals import rebalance_on_invalid_sync

VERSION = "2.0"  # of the protocol that kafka-python and the mock both speak
FETCH = 50  # ms


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


def address(bootstrap: str) -> dict[str, str]:
    """The settings that lead to the mock there."""
    return {"kafka_bootstrap": bootstrap, "kafka_api_version": VERSION}


def adapt(redis_url: str) -> None:
    """Make up, in this process and from now on, for what the mock lacks."""
    KafkaConsumer.DEFAULT_CONFIG |= {"check_crcs": False, "fetch_max_wait_ms": FETCH}
    rebalance_on_invalid_sync()
    _keep_offsets(redis.Redis.from_url(redis_url))


def _keep_offsets(store: redis.Redis) -> None:
    """Those of transactions, in place of the group's own: as a hash of each group, once they are committed."""
    pending: dict[int, tuple[str, dict[Any, OffsetAndMetadata]]] = {}
    send, commit = KafkaProducer.send_offsets_to_transaction, KafkaProducer.commit_transaction

    def send_offsets(self: KafkaProducer, offsets: dict[Any, OffsetAndMetadata], group: Any) -> None:
        send(self, offsets, group)
        pending[id(self)] = (group.group_id, offsets)

    def commit_transaction(self: KafkaProducer) -> None:
        commit(self)
        group, offsets = pending.pop(id(self))
        for place, each in offsets.items():
            store.hset(_key(group), f"{place.topic}/{place.partition}", msgspec.json.encode(each).decode())

    def committed(self: KafkaConsumer, place: Any, **options: Any) -> OffsetAndMetadata | None:
        found: Any = store.hget(_key(self.config["group_id"]), f"{place.topic}/{place.partition}")
        return None if found is None else OffsetAndMetadata(*msgspec.json.decode(found))

    KafkaConsumer.committed = committed
    KafkaProducer.send_offsets_to_transaction = send_offsets
    KafkaProducer.commit_transaction = commit_transaction


def _key(group: str) -> str:
    return f"hr:mock:offsets:{group}"
