"""A Redis and brokers for measurements, and a model's topics on them: what is sent there, and what comes back.

On brokers that are named, or on a mock in this process. It does not know what is measured.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from kafka import KafkaAdminClient

from headrace.batch.kafka_reader import TopicReader
from shared.errors import ConfigError, HeadraceError
from shared.kafka import topics
from shared.kafka.connection import connection, producer
from shared.kafka.message import KafkaRequest, request_record
from shared.redis.embedded import EmbeddedServer
from shared.settings import ENV_PREFIX, Settings, load

LIMIT = 300.0  # seconds
SILENCE = 2.0  # seconds after the last result in which none may come again
STOP_LIMIT = 30.0
POLL = 0.1
MOCK_ENTRY = "headrace.cli.mock_kafka"


class Installation:
    """A running Redis and brokers, and topics of a model that nobody else has.

    Args:
        address: the settings that lead to the brokers.
        entry: the module that is the command line of those who speak to them.
    """

    def __init__(self, server: EmbeddedServer, address: Mapping[str, str], entry: str) -> None:
        self.model = f"bench-{secrets.token_hex(4)}"
        self.given = {**address, "redis_url": server.url, "served_model_name": self.model}
        self.settings: Settings = load(self.given).settings
        self.results = f"headrace.results.{self.model}"
        self.redis = psutil.Process(server.pid)
        self._entry = entry

    def make_topics(self) -> None:
        make_topics(self.settings, topics.requests(self.model), topics.api_requests(self.model), self.results)

    def start_worker(self, **settings: object) -> subprocess.Popen[bytes]:
        """A process of its own."""
        given = {**self.given, "log_level": "error", **settings}
        own = {f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in given.items()}
        return subprocess.Popen([sys.executable, "-m", self._entry, "worker"], env={**os.environ, **own})

    def send(self, asked: Mapping[str, Mapping[str, Any]]) -> None:
        """Requests by the name of each. Raises KafkaError."""
        writer = producer(self.settings, linger_ms=5)
        try:
            for name, fields in asked.items():
                record = request_record(
                    topics.requests(self.model),
                    KafkaRequest.model_validate({"model": self.model, **fields}),
                    event_id=name,
                    source="/bench",
                    key=name.encode(),
                    reply_topic=self.results,
                )
                writer.send(**record.arguments())
            writer.flush()
        finally:
            writer.close()

    def read(self, told: Counter[str], count: int, meanwhile: Callable[[], None]) -> float:
        """Count results by their requests' names until there are `count` names; when that was."""
        deadline = time.perf_counter() + LIMIT
        with TopicReader(self.settings, [self.results], {}) as reader:
            while len(told) < count and time.perf_counter() < deadline:
                self._take(reader, told)
                meanwhile()
            ended = time.perf_counter()
            while time.perf_counter() < ended + SILENCE:
                self._take(reader, told)
        return ended

    def _take(self, reader: TopicReader, told: Counter[str]) -> None:
        told.update(record.header("ce_subject") or record.source for record in reader.poll(POLL))


def make_topics(settings: Settings, *names: str) -> None:
    """Of four partitions. Raises KafkaError."""
    admin = KafkaAdminClient(**connection(settings))
    try:
        admin.create_topics({name: {"num_partitions": 4} for name in names}, raise_errors=False)
    finally:
        admin.close()


@contextmanager
def installation(bootstrap: str) -> Iterator[Installation]:
    """On the brokers `bootstrap`, or, where that is empty, on a mock. Raises ConfigError."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        try:
            if bootstrap:
                made = Installation(server, {"kafka_bootstrap": bootstrap}, "headrace")
                made.make_topics()
            else:
                made = _mocked(server)
            yield made
        finally:
            server.stop()


def _mocked(server: EmbeddedServer) -> Installation:
    try:
        from headrace.bench.kafka import mock_kafka
    except ImportError as error:
        raise ConfigError(f"{error}: name brokers, or install confluent-kafka for a mock") from error
    mock_kafka.adapt(server.url)
    return Installation(server, mock_kafka.address(mock_kafka.cluster().bootstrap), MOCK_ENTRY)


def alive(worker: subprocess.Popen[bytes]) -> None:
    """Raises HeadraceError where it has ended."""
    if worker.poll() is not None:
        raise HeadraceError(f"the worker ended with {worker.returncode}")


def stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
