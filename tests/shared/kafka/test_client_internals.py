"""The private attributes of kafka-python that shared/kafka/client_internals.py uses still exist."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.coordinator.base import BaseCoordinator
from kafka.errors import InvalidRequestError, KafkaTimeoutError, RebalanceInProgressError
from kafka.producer.transaction_manager import TransactionalRequestResult
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from headrace.bench.kafka.mock_kafka import VERSION
from shared.kafka import connection
from shared.kafka.client_internals import (
    accept_any_header_name,
    finish_joining,
    heard_since,
    limit_transactions,
    rebalance_on_invalid_sync,
    release_used_up_records,
)
from shared.settings import Settings, load


def settings_for(bootstrap: str) -> Settings:
    return load({"kafka_bootstrap": bootstrap, "kafka_api_version": VERSION}).settings


@pytest.fixture
def consumer(bootstrap: str) -> Iterator[Any]:
    made = connection.consumer(settings_for(bootstrap), group_id="internals")
    yield made
    made.close()


def test_a_socket_that_waits_to_send_is_closed(bootstrap: str) -> None:
    made = connection.consumer(settings_for(bootstrap))
    made.beginning_offsets([TopicPartition("internals", 0)])
    open_transports = [each.transport for each in made._manager._conns.values() if each.transport is not None]
    sockets = [each._sock for each in open_transports]
    for each in open_transports:
        each._write_buffer.append(b"x")
        each._writing = True  # as while the socket takes no more bytes
    made.close()
    assert sockets
    assert [each.fileno() for each in sockets] == [-1] * len(sockets)


def test_used_up_records_are_released_and_others_kept(consumer: Any) -> None:
    fetcher = consumer._fetcher
    assert fetcher._next_partition_records is None
    for records, kept in (([], None), (["left"], ["left"])):  # its records are false once they are used up
        fetcher._next_partition_records = records
        release_used_up_records(consumer)
        assert fetcher._next_partition_records == kept
    fetcher._next_partition_records = None
    assert "__bool__" in vars(fetcher.PartitionRecords)


def test_transactions_wait_for_an_answer_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransactionalRequestResult, "wait", TransactionalRequestResult.wait)  # restored at the end
    limit_transactions(0.01)
    unanswered = TransactionalRequestResult()
    with pytest.raises(KafkaTimeoutError):
        unanswered.wait()
    assert not unanswered.wait(timeout_ms=1)
    unanswered.done()
    assert unanswered.wait()


def test_a_producer_is_closed_with_records_that_cannot_be_sent(
    bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python's own close raises an error then, and leaves the thread."""
    began = time.monotonic()
    made = connection.producer(settings_for(bootstrap))
    made.partitions_for("internals")
    assert heard_since(made, began)
    assert not heard_since(made, time.monotonic())
    monkeypatch.setattr(made._sender, "_send_producer_data", lambda *_: 10)
    sent = made.send("internals", b"never")
    connection.close_producer(made, 0.01)
    assert not made._sender.is_alive()
    assert sent.failed()


def test_names_of_headers_need_not_be_text() -> None:
    accept_any_header_name()
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1000)
    for offset, name in enumerate(("plain", "\udcff")):
        monkeyed = NotText(name) if offset else name
        builder.append(offset, timestamp=1, key=b"k", value=b"v", headers=[(monkeyed, b"1")])
    found = list(MemoryRecords(bytes(builder.build())).next_batch())
    assert [(each.key, each.value, each.headers) for each in found] == [
        (b"k", b"v", [("plain", b"1")]),
        (b"k", b"v", [("\ufffd", b"1")]),
    ]


class NotText(str):
    """Name of a header that is not UTF-8 in its record."""

    def encode(self, *_: object) -> bytes:
        return b"\xff"


def test_a_join_under_way_is_asked_for_again(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = consumer._coordinator
    asked: list[bool] = []
    request = coordinator.request_rejoin
    monkeypatch.setattr(coordinator, "request_rejoin", lambda: (asked.append(True), request()))
    assert coordinator.rejoining is False
    finish_joining(consumer)
    assert asked == []
    coordinator.rejoining = True
    finish_joining(consumer)
    assert asked == [True]
    coordinator.rejoining = False


def test_an_invalid_sync_is_a_rebalance(monkeypatch: pytest.MonkeyPatch) -> None:
    def process(self: object, response: object, send_time: object) -> None:
        raise InvalidRequestError("late")

    assert callable(BaseCoordinator._process_sync_group_response)
    monkeypatch.setattr(BaseCoordinator, "_process_sync_group_response", process)
    rebalance_on_invalid_sync()
    with pytest.raises(RebalanceInProgressError, match="late"):
        BaseCoordinator._process_sync_group_response(None, None, None)
