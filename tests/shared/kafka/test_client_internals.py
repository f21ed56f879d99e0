"""The private attributes of kafka-python that shared/kafka/client_internals.py uses still exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.coordinator.base import BaseCoordinator
from kafka.errors import InvalidRequestError, RebalanceInProgressError

from headrace.bench.kafka.mock_kafka import VERSION
from shared.kafka import connection
from shared.kafka.client_internals import finish_joining, rebalance_on_invalid_sync, release_used_up_records
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
