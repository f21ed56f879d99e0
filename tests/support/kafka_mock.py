"""The brokers that tests meet: a mock in this process, or those whose addresses are in TEST_KAFKA.

How those are spoken to, as by TLS and SASL, is in the environment's settings, HEADRACE_KAFKA_*.
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
from shared.protocol import Request, Ticket
from shared.queue.interface import Bounds
from shared.queue.redis_streams import RedisStreams
from shared.settings import ENV_PREFIX, Settings, load

BROKER = os.environ.get("TEST_KAFKA", "")
PREFIX = f"{ENV_PREFIX}KAFKA_"
SPOKEN = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}  # tests lose it later


def environment(bootstrap: str) -> dict[str, str]:
    """The settings that lead there, for a process."""
    if BROKER:
        return {**SPOKEN, f"{PREFIX}BOOTSTRAP": bootstrap}
    return {f"{ENV_PREFIX}{name.upper()}": value for name, value in mock_kafka.address(bootstrap).items()}


def address(bootstrap: str) -> dict[str, Any]:
    """The same, for this one."""
    given = {name.removeprefix(ENV_PREFIX).lower(): value for name, value in environment(bootstrap).items()}
    return load(given).settings.model_dump(include=set(given))


# a group waits for nearly a session's time on the mock whenever its members change
BRISK = f"""
import runpy
from workers.kafka import consumer_thread
consumer_thread.SESSION = 2_500
runpy.run_module("{kafka_cluster.MOCK_ENTRY}", run_name="__main__")
"""


def headrace(*arguments: str) -> list[str]:
    """The command line, in a process that knows what it meets."""
    if not BROKER and arguments[0] == "worker":
        return [sys.executable, "-c", BRISK, *arguments]
    return [sys.executable, "-m", "headrace" if BROKER else kafka_cluster.MOCK_ENTRY, *arguments]


def make_topics(bootstrap: str, *names: str) -> None:
    """On real brokers, of four partitions as the mock's; there they appear when used."""
    if BROKER:
        kafka_cluster.make_topics(load(address(bootstrap)).settings, *names)


class Moved(KafkaQueue):
    """As if a worker took each record from its topic at once."""

    async def publish_many(self, requests: Sequence[Request]) -> list[Ticket | HeadraceError]:
        places = await super().publish_many(requests)
        written = [request for request, place in zip(requests, places, strict=True) if isinstance(place, Ticket)]
        await RedisStreams.publish_many(self, written)
        return places


def moved(backend: Backend, settings: Settings, writer: KafkaProducer) -> Backend:
    assert backend.server is not None
    transport = Moved(backend.server, bounds=Bounds.of(settings), lease=settings.lease, writer=writer)
    return replace(backend, transport=transport)
