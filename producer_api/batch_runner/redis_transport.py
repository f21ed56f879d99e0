"""Celery's transport over Redis, which what another program wrote into its keys does not end.

kombu decodes a message after it has taken it off its list, and lets the error end the worker. Here such a message
is dropped and counted, and the next one is read. This uses internals of kombu.
"""

from __future__ import annotations

import hashlib
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ResponseError

from shared.redis.foreign import ForeignEntries

# How a message fails that Celery did not write: in its JSON, its fields or their types.
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
SCHEMES = ("redis", "rediss")


def tolerate(foreign: ForeignEntries) -> None:
    """Use this transport for all brokers on Redis of this process, and note in `foreign` what they drop."""
    kind = type("NotingTransport", (Transport,), {"foreign": foreign})
    TRANSPORT_ALIASES.update(dict.fromkeys(SCHEMES, lambda: kind))  # type: ignore[arg-type]  # kombu calls it


class QoS(redis.QoS):
    """Gives back the messages of lost processes, except those that cannot be read."""

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        try:
            super().restore_by_tag(tag, client=client, leftmost=leftmost)
        except UNREADABLE as error:
            self.channel.connection.drop(repr(tag), error)
            self._remove_from_indices(tag).execute()


class Channel(redis.Channel):
    """Reads the lists of tasks."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except UNREADABLE as error:
            self.connection.drop("", error)
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            self._remove_other_types(error)
        raise Empty

    def _remove_other_types(self, error: ResponseError) -> None:
        """Delete each key of a list of tasks that is no list."""
        with self.conn_or_acquire() as client:
            for name in (
                self._q_for_pri(queue, step) for queue in self.active_queues for step in self.priority_steps
            ):
                try:
                    client.llen(name)
                except ResponseError:
                    client.delete(name)
                    self.connection.drop(name, error)


class Transport(redis.Transport):
    """kombu's own, with these channels.

    Attributes:
        foreign: where dropped messages are noted.
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
        """Acknowledge what was noted as under way before it was found unreadable."""
        properties = message.get("properties") if isinstance(message, dict) else None
        tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
        if isinstance(tag, str):
            for channel in self.channels:
                channel.basic_reject(tag, requeue=False)

    def drop(self, place: str, error: Exception) -> None:
        """Note one message, by its key or, where it has none, by a number."""
        self.dropped += 1
        name = hashlib.sha256(f"{id(self)}:{self.dropped}:{place}".encode()).digest()
        self.foreign.note("tasks", name, f"not a task: {type(error).__name__}")
