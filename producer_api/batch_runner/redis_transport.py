"""Celery transport over Redis that survives foreign data in its keys.

kombu decodes a message after it has removed it from its list, and an error there ends the worker. This transport
drops and counts such a message, and reads the next one. It uses internals of kombu.
"""

from __future__ import annotations

import hashlib
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ResponseError

from shared.redis.foreign import ForeignEntries

# Errors that a message of another program causes: in its JSON, its fields or their types.
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
SCHEMES = ("redis", "rediss")


def use_tolerant_transport(foreign: ForeignEntries) -> None:
    """Use this transport for all Redis brokers of this process, and record dropped messages in `foreign`."""
    kind = type("TolerantTransport", (Transport,), {"foreign": foreign})
    TRANSPORT_ALIASES.update(dict.fromkeys(SCHEMES, lambda: kind))  # type: ignore[arg-type]  # kombu calls it


class QoS(redis.QoS):
    """Restores the messages of lost processes, and drops those that cannot be read."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Record a message that has left its list as unacknowledged; otherwise it would be lost."""
        try:
            super().append(message, delivery_tag)
        except ResponseError as error:
            self.channel.remove_other_types(error)
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)
        except ResponseError as error:
            self.channel.remove_other_types(error)
            super().ack(delivery_tag)

    def restore_visible(self, *args: Any, **options: Any) -> None:
        try:
            super().restore_visible(*args, **options)
        except ResponseError as error:
            self.channel.remove_other_types(error)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        try:
            super().restore_by_tag(tag, client=client, leftmost=leftmost)
        except UNREADABLE as error:
            self.channel.connection.drop(repr(tag), error)
            self._remove_from_indices(tag).execute()


class Channel(redis.Channel):
    """Reads the task lists."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except UNREADABLE as error:
            self.connection.drop("", error)
        except ResponseError as error:
            self.remove_other_types(error)
        raise Empty

    def remove_other_types(self, error: ResponseError) -> None:
        """Delete each key that does not have the type that kombu gives it. Raises any other `error`."""
        if "WRONGTYPE" not in str(error):
            raise error
        with self.conn_or_acquire() as client:
            probes = [(self.unacked_key, client.hlen), (self.unacked_index_key, lambda name: client.zrem(name, ""))]
            for queue in self.active_queues:
                probes += [(self._q_for_pri(queue, step), client.llen) for step in self.priority_steps]
            for name, probe in probes:
                try:
                    probe(name)
                except ResponseError:
                    client.delete(name)
                    self.connection.drop(name, error)


class Transport(redis.Transport):
    """kombu's Redis transport with a tolerant channel.

    Attributes:
        foreign: records dropped messages.
    """

    Channel = Channel
    foreign: ForeignEntries
    dropped = 0

    def _deliver(self, message: Any, queue: str) -> None:
        try:
            super()._deliver(message, queue)
        except UNREADABLE as error:
            self.drop("", error)
            self._forget(message)

    def _forget(self, message: Any) -> None:
        """Acknowledge an unreadable message that kombu already counts as delivered."""
        properties = message.get("properties") if isinstance(message, dict) else None
        tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
        if isinstance(tag, str):
            for channel in self.channels:
                channel.basic_reject(tag, requeue=False)

    def drop(self, place: str, error: Exception) -> None:
        """Record a dropped message by its key, or by a number if it has none."""
        self.dropped += 1
        name = hashlib.sha256(f"{id(self)}:{self.dropped}:{place}".encode()).digest()
        self.foreign.note("tasks", name, f"not a task: {type(error).__name__}")
