"""The private attributes of kafka-python that Headrace uses; tests/shared/kafka/test_client_internals.py covers
each.

They work around faults of kafka-python 3.0.12, or of librdkafka's mock cluster.
"""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import Any, SupportsIndex

from kafka import KafkaConsumer, KafkaProducer
from kafka.coordinator.base import BaseCoordinator
from kafka.errors import InvalidRequestError, KafkaTimeoutError, RebalanceInProgressError
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.producer.transaction_manager import TransactionalRequestResult
from kafka.record.default_records import DefaultRecordBatch

CLOSE_LIMIT_S = 2.0  # for the thread of a producer that is closed at once


class DirectSocket(KafkaNetSocket):  # type: ignore[misc]
    """Direct connections whose socket is closed if they fail.

    kafka-python leaves the socket to the garbage collector, one for each attempt while a broker is away. It chooses
    this class by the scheme of its option `proxy_url`.
    """

    SCHEMES = ("direct",)

    async def sock_connect(self, net: Any, sock: Any, *where: Any, **options: Any) -> Any:
        try:
            return await super().sock_connect(net, sock, *where, **options)
        except BaseException:  # also if the client is closed meanwhile
            sock.close()
            raise


class ClosingClient(KafkaNetClient):  # type: ignore[misc]
    """Client that closes all its sockets; kafka-python forgets those on which it still waits to send something."""

    def close(self, node_id: Any = None) -> None:
        connections = [] if node_id is not None else list(self._manager._conns.values())
        sockets = [each.transport._sock for each in connections if each.transport is not None]
        super().close(node_id)
        for each in sockets:
            if each is not None:
                each.close()


def release_used_up_records(consumer: KafkaConsumer) -> None:
    """Let a resumed partition return what was fetched for it before it was paused.

    kafka-python looks for such records only when no records are next in line, and counts an exhausted batch as next
    in line: the partition is then neither returned nor fetched again.
    """
    if not consumer._fetcher._next_partition_records:
        consumer._fetcher._next_partition_records = None


def finish_joining(consumer: KafkaConsumer) -> None:
    """Let the next poll continue a group join that outlived the last one.

    kafka-python forgets a join that began because partitions appeared, as at a start: the consumer then owns
    nothing, sends no heartbeats, and reports neither.
    """
    if consumer._coordinator.rejoining:
        consumer._coordinator.request_rejoin()


def rebalance_on_invalid_sync() -> None:
    """Treat an invalid-request answer to SyncGroup as a rebalance, in this process from now on.

    A broker reports a member that syncs late as a rebalance; the mock cluster calls its request invalid.
    """
    process = BaseCoordinator._process_sync_group_response

    def processed(self: BaseCoordinator, *args: Any) -> Any:
        try:
            return process(self, *args)
        except InvalidRequestError as error:
            raise RebalanceInProgressError(str(error)) from error

    BaseCoordinator._process_sync_group_response = processed


def close_at_once(producer: KafkaProducer) -> None:
    """Close a producer without sending what it still has.

    If records cannot be sent in time, kafka-python's `close` raises an error instead, and leaves the thread and its
    connections.
    """
    producer._sender.force_close()
    producer._sender.join(CLOSE_LIMIT_S)
    with suppress(KafkaTimeoutError):
        producer.close(timeout=0)


def heard_since(producer: KafkaProducer, then: float) -> bool:
    """Return whether brokers have answered a producer's question for metadata since `then`, a monotonic time."""
    return bool(producer._metadata._last_successful_refresh_ms >= then * 1000)


@functools.cache
def limit_transactions(limit_s: float) -> None:
    """Limit each wait for an answer in a transaction, in this process from now on.

    kafka-python waits without a limit: a thread would be stuck for as long as the brokers are away.
    """
    wait = TransactionalRequestResult.wait

    def limited(self: TransactionalRequestResult, timeout_ms: float | None = None) -> bool:
        if wait(self, limit_s * 1000 if timeout_ms is None else timeout_ms):
            return True
        if timeout_ms is None:
            raise KafkaTimeoutError(f"no answer in a transaction for {limit_s:g} s")
        return False

    TransactionalRequestResult.wait = limited


class _Lenient(bytes):
    """Bytes whose slices replace, when they are decoded, what is not UTF-8."""

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        found = super().__getitem__(key)
        return _Lenient(found) if isinstance(found, bytes) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, errors)


@functools.cache
def accept_any_header_name() -> None:
    """Read records with names of headers that are not UTF-8, as Java's consumer does, in this process from now on.

    kafka-python raises an error for such a record, at each attempt, so that its partition would stand still.
    """
    read = DefaultRecordBatch._read_msg

    def tolerant(self: DefaultRecordBatch, *args: Any) -> Any:
        try:
            return read(self, *args)
        except UnicodeDecodeError:
            self._buffer = _Lenient(self._buffer)
            return read(self, *args)

    DefaultRecordBatch._read_msg = tolerant
