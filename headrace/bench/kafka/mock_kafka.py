"""librdkafka's mock cluster for measurements and tests without a broker, with workarounds for its defects.

The mock accepts a transaction's offsets but does not store them; it breaks the checksums of transactions; it blocks
a group for nearly a session timeout whenever its members change; it does not wake a fetch that waits for records;
and it shows aborted records to all readers. `adapt` makes a process store the offsets in Redis, skip the checksums,
and use short fetches. So a mock shows that offsets are stored, but not that this is atomic with the results.

`python -m headrace.cli.mock_kafka …` is Headrace's command line after `adapt`.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import redis
from confluent_kafka import Producer
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata

from shared.kafka.client_internals import rebalance_on_invalid_sync

VERSION = "2.0"  # protocol version that both kafka-python and the mock support
FETCH_WAIT_MS = 50


class MockCluster:
    """One broker in this process. Topics with four partitions are created when first used."""

    def __init__(self) -> None:
        self._producer = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": "1", "log_level": 0})
        [broker] = self._producer.list_topics(timeout=10).brokers.values()
        self.bootstrap = f"{broker.host}:{broker.port}"


@functools.cache
def cluster() -> MockCluster:
    """Return the mock cluster of this process."""
    return MockCluster()


def address(bootstrap: str) -> dict[str, str]:
    """Return the settings for the mock at an address."""
    return {"kafka_bootstrap": bootstrap, "kafka_api_version": VERSION}


def adapt(redis_url: str) -> None:
    """Apply the workarounds to kafka-python in this process."""
    KafkaConsumer.DEFAULT_CONFIG |= {"check_crcs": False, "fetch_max_wait_ms": FETCH_WAIT_MS}
    rebalance_on_invalid_sync()
    _keep_offsets(redis.Redis.from_url(redis_url))


def _keep_offsets(store: redis.Redis) -> None:
    """Store the offsets of committed transactions in Redis, in a hash per group, and read them from there."""
    pending: dict[int, tuple[str, dict[Any, OffsetAndMetadata]]] = {}
    send, commit = KafkaProducer.send_offsets_to_transaction, KafkaProducer.commit_transaction

    def send_offsets(self: KafkaProducer, offsets: dict[Any, OffsetAndMetadata], group: Any) -> None:
        send(self, offsets, group)
        pending[id(self)] = (group.group_id, offsets)

    def commit_transaction(self: KafkaProducer) -> None:
        commit(self)
        group, offsets = pending.pop(id(self))
        for partition, each in offsets.items():
            store.hset(_key(group), f"{partition.topic}/{partition.partition}", msgspec.json.encode(each).decode())

    def committed(self: KafkaConsumer, partition: Any, **options: Any) -> OffsetAndMetadata | None:
        found: Any = store.hget(_key(self.config["group_id"]), f"{partition.topic}/{partition.partition}")
        return None if found is None else OffsetAndMetadata(*msgspec.json.decode(found))

    KafkaConsumer.committed = committed
    KafkaProducer.send_offsets_to_transaction = send_offsets
    KafkaProducer.commit_transaction = commit_transaction


def _key(group: str) -> str:
    return f"hr:mock:offsets:{group}"
