"""Redis and Kafka for measurements: topics of a model, its workers, and sending and reading of records.

The brokers are given, or a mock in this process.
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

RESULTS_TIMEOUT_S = 300.0
QUIET_S = 2.0  # after the last result, in which no repeated result may arrive
STOP_TIMEOUT_S = 30.0
POLL_S = 0.1
MOCK_ENTRY = "headrace.cli.mock_kafka"


class Installation:
    """Running Redis and brokers, with topics of a model that is used nowhere else.

    Args:
        address: settings with the address of the brokers.
        entry: module with the command line that workers are started with.
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
        """Start a worker process."""
        given = {**self.given, "log_level": "error", **settings}
        own = {f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in given.items()}
        return subprocess.Popen([sys.executable, "-m", self._entry, "worker"], env={**os.environ, **own})

    def send(self, requests: Mapping[str, Mapping[str, Any]]) -> None:
        """Send requests, given by their event ids. Raises KafkaError."""
        writer = producer(self.settings, linger_ms=5)
        try:
            for name, fields in requests.items():
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

    def read(self, counts: Counter[str], count: int, meanwhile: Callable[[], None]) -> float:
        """Count results by their requests' event ids until there are `count` ids, and return the time of the last.

        `meanwhile` is called after each poll.
        """
        deadline = time.perf_counter() + RESULTS_TIMEOUT_S
        with TopicReader(self.settings, [self.results], {}) as reader:
            while len(counts) < count and time.perf_counter() < deadline:
                self._take(reader, counts)
                meanwhile()
            ended = time.perf_counter()
            while time.perf_counter() < ended + QUIET_S:
                self._take(reader, counts)
        return ended

    def _take(self, reader: TopicReader, counts: Counter[str]) -> None:
        counts.update(record.header("ce_subject") or record.source for record in reader.poll(POLL_S))


def make_topics(settings: Settings, *names: str) -> None:
    """Create topics with four partitions. Raises KafkaError."""
    admin = KafkaAdminClient(**connection(settings))
    try:
        admin.create_topics({name: {"num_partitions": 4} for name in names}, raise_errors=False)
    finally:
        admin.close()


@contextmanager
def running_installation(bootstrap: str) -> Iterator[Installation]:
    """Run Redis, with the brokers `bootstrap`, or with a mock if that is empty. Raises ConfigError."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        try:
            if bootstrap:
                installation = Installation(server, {"kafka_bootstrap": bootstrap}, "headrace")
                installation.make_topics()
            else:
                installation = _on_mock(server)
            yield installation
        finally:
            server.stop()


def _on_mock(server: EmbeddedServer) -> Installation:
    try:
        from headrace.bench.kafka import mock_kafka
    except ImportError as error:
        raise ConfigError(f"{error}: give --bootstrap, or install confluent-kafka for a mock") from error
    mock_kafka.adapt(server.url)
    return Installation(server, mock_kafka.address(mock_kafka.cluster().bootstrap), MOCK_ENTRY)


def require_running(worker: subprocess.Popen[bytes]) -> None:
    """Raise HeadraceError if the worker has ended."""
    if worker.poll() is not None:
        raise HeadraceError(f"the worker ended with exit code {worker.returncode}")


def stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
