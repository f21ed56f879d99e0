"""Kafka brokers for tests: a mock in this process, or the brokers whose addresses are in TEST_KAFKA.

TLS and SASL for those brokers are set in the environment, as HEADRACE_KAFKA_*.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kafka import KafkaProducer

from headrace.bench.kafka import kafka_cluster, mock_kafka
from producer_api.admission.kafka_queue import KafkaQueue
from shared.backend import Backend
from shared.errors import HeadraceError
from shared.kafka.error_counts import KafkaErrors
from shared.protocol import Request, Ticket
from shared.queue.interface import Bounds
from shared.queue.redis_streams import RedisStreams
from shared.settings import ENV_PREFIX, Settings, load

BROKER = os.environ.get("TEST_KAFKA", "")
PREFIX = f"{ENV_PREFIX}KAFKA_"
# read at import, since a fixture removes all settings from the environment of the tests
CONNECTION = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}


def environment(bootstrap: str) -> dict[str, str]:
    """Return the environment with which a process connects to the brokers."""
    if BROKER:
        return {**CONNECTION, f"{PREFIX}BOOTSTRAP": bootstrap}
    return {f"{ENV_PREFIX}{name.upper()}": value for name, value in mock_kafka.address(bootstrap).items()}


def address(bootstrap: str) -> dict[str, Any]:
    """Return the settings with which this process connects to the brokers."""
    given = {name.removeprefix(ENV_PREFIX).lower(): value for name, value in environment(bootstrap).items()}
    return load(given).settings.model_dump(include=set(given))


# On the mock, a group waits for a second less than the session timeout whenever its members change, and for 3 s if
# it was empty. A member whose session ends in that wait is dropped and never answered, so sessions must be longer.
SESSION_TIMEOUT_MS = 3_500
SHORT_SESSION_WORKER = f"""
import runpy
from workers.kafka import consumer_thread
consumer_thread.SESSION_TIMEOUT_MS = {SESSION_TIMEOUT_MS}
runpy.run_module("{kafka_cluster.MOCK_ENTRY}", run_name="__main__")
"""


def headrace(*arguments: str) -> list[str]:
    """Return the command line of a headrace process, adapted to the mock if there is no broker."""
    if not BROKER and arguments[0] == "worker":
        return [sys.executable, "-c", SHORT_SESSION_WORKER, *arguments]
    return [sys.executable, "-m", "headrace" if BROKER else kafka_cluster.MOCK_ENTRY, *arguments]


def make_topics(bootstrap: str, *names: str) -> None:
    """Create topics with four partitions on real brokers; the mock creates them when they are first used."""
    if BROKER:
        kafka_cluster.make_topics(load(address(bootstrap)).settings, *names)


class DirectKafkaQueue(KafkaQueue):
    """Kafka transport whose records are also put into the Redis queue at once, as by a worker's intake."""

    async def publish_many(self, requests: Sequence[Request]) -> list[Ticket | HeadraceError]:
        places = await super().publish_many(requests)
        written = [request for request, place in zip(requests, places, strict=True) if isinstance(place, Ticket)]
        await RedisStreams.publish_many(self, written)
        return places


def with_kafka(backend: Backend, settings: Settings, writer: KafkaProducer) -> Backend:
    """Return the backend with Kafka as its queue."""
    assert backend.server is not None
    errors, bounds = KafkaErrors(), Bounds.from_settings(settings)
    transport = DirectKafkaQueue(backend.server, bounds=bounds, lease=settings.lease, writer=writer, errors=errors)
    return replace(backend, transport=transport, kafka_errors=errors)
