"""Transactions on real brokers: atomic results and offsets, hidden aborted records, and fenced former owners.

scripts/test-kafka runs these beside the tests that the mock can be held to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from kafka import ConsumerGroupMetadata, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError

from shared.kafka import topics
from shared.kafka.client_internals import finish_joining
from shared.kafka.connection import connection, consumer
from shared.kafka.message import Outgoing
from shared.settings import Settings
from tests.support.kafka_mock import BROKER
from workers.kafka.transactional_writer import TransactionalWriter

LIMIT = 40.0

assert BROKER, "set TEST_KAFKA to real brokers: the mock has no transactions"


class Member:
    """Member of the model's consumer group."""

    def __init__(self, settings: Settings) -> None:
        model = settings.served_model_name
        assert model is not None
        group = topics.group(model)
        self.consumer = consumer(settings, group_id=group, session_timeout_ms=10_000, heartbeat_interval_ms=500)
        self.consumer.subscribe([topics.requests(model)])

    def poll(self) -> set[TopicPartition]:
        finish_joining(self.consumer)
        self.consumer.poll(timeout_ms=100)
        return set(self.consumer.assignment())

    def joined(self, count: int) -> ConsumerGroupMetadata:
        """Wait until the member owns `count` partitions."""
        deadline = time.monotonic() + LIMIT
        while len(self.poll()) != count:
            assert time.monotonic() < deadline
        return self.consumer.group_metadata()


@pytest.fixture
def members(settings: Settings) -> Iterator[tuple[Member, Member]]:
    """Two members that have not joined yet."""
    made = Member(settings), Member(settings)
    yield made
    for member in made:
        member.consumer.close(autocommit=False)


@pytest.fixture
def results(settings: Settings) -> Iterator[TransactionalWriter]:
    made = TransactionalWriter(settings)
    yield made
    made.close()


@pytest.fixture
def place(settings: Settings) -> TopicPartition:
    assert settings.served_model_name is not None
    return TopicPartition(topics.requests(settings.served_model_name), 0)


def result(settings: Settings, value: bytes) -> Outgoing:
    return Outgoing(f"results-{settings.served_model_name}", b"one partition", value)


def seen(settings: Settings, count: int, isolation: str = "read_committed") -> list[bytes]:
    """Return the values of `count` results, and of any records right after them."""
    options = {**connection(settings), "isolation_level": isolation, "auto_offset_reset": "earliest"}
    reader = KafkaConsumer(f"results-{settings.served_model_name}", group_id=None, **options)
    found: list[bytes] = []
    deadline = time.monotonic() + LIMIT
    try:
        while len(found) < count and time.monotonic() < deadline:
            found += _values(reader, 100)
        return found + _values(reader, 500)
    finally:
        reader.close()


def _values(reader: KafkaConsumer, wait: int) -> list[bytes]:
    return [record.value for records in reader.poll(timeout_ms=wait).values() for record in records]


def test_results_and_offsets_are_atomic(
    settings: Settings, members: tuple[Member, Member], results: TransactionalWriter, place: TopicPartition
) -> None:
    """Given an aborted transaction between two others, its records are not read and its offset is not stored."""
    owner, _ = members
    group = owner.joined(4)
    results.write([result(settings, b"first")], {place: (1, "")}, group)
    writer = results.open()
    writer.begin_transaction()
    writer.send(**result(settings, b"aborted").arguments())
    writer.send_offsets_to_transaction({place: OffsetAndMetadata(2, "", -1)}, group)
    writer.flush()
    writer.abort_transaction()
    assert owner.consumer.committed(place) == 1
    results.write([result(settings, b"last")], {place: (3, "0,2-4")}, group)
    committed = owner.consumer.committed(place, metadata=True)
    assert (committed.offset, committed.metadata) == (3, "0,2-4")
    assert seen(settings, 2) == [b"first", b"last"]
    assert seen(settings, 3, "read_uncommitted") == [b"first", b"aborted", b"last"]


def test_a_new_writer_aborts_the_failed_writers_transaction(
    settings: Settings, members: tuple[Member, Member], results: TransactionalWriter, place: TopicPartition
) -> None:
    owner, _ = members
    group = owner.joined(4)
    writer = results.open()
    writer.begin_transaction()
    writer.send(**result(settings, b"half").arguments()).get(10)
    results._producer = None  # as if the connection was lost: the transaction is not aborted
    results.write([result(settings, b"whole")], {place: (1, "")}, group)
    with pytest.raises(KafkaError):
        writer.commit_transaction()
    writer.close(timeout=1)
    assert seen(settings, 1) == [b"whole"]


def test_a_former_owner_is_fenced(
    settings: Settings, members: tuple[Member, Member], results: TransactionalWriter, place: TopicPartition
) -> None:
    """Given a group that a second member has joined, the transaction that the first had begun is refused."""
    first, second = members
    before = first.joined(4)
    results.write([result(settings, b"first")], {place: (1, "")}, before)
    deadline = time.monotonic() + LIMIT
    while [len(first.poll()), len(second.poll())] != [2, 2]:
        assert time.monotonic() < deadline
    with pytest.raises(KafkaError):
        results.write([result(settings, b"late")], {place: (2, "")}, before)
    assert first.consumer.committed(place) == 1
    results.write([result(settings, b"second")], {place: (2, "")}, first.consumer.group_metadata())
    assert first.consumer.committed(place) == 2
    assert seen(settings, 2) == [b"first", b"second"]
