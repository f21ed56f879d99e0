"""The private attributes of kafka-python that Headrace uses; tests/shared/kafka/test_client_internals.py covers
each.

They work around faults of kafka-python 3.0.12, or of librdkafka's mock cluster.
"""

from __future__ import annotations

from typing import Any

from kafka import KafkaConsumer
from kafka.coordinator.base import BaseCoordinator
from kafka.errors import InvalidRequestError, RebalanceInProgressError
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket


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
