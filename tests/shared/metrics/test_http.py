"""The server of a worker's metrics."""

from __future__ import annotations

import socket
import urllib.request

from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from shared.metrics.http import MAX_CONNECTIONS, serve_metrics
from shared.metrics.meter import Meter
from shared.runtime.sockets import place_of
from tests.support.waiting import LIMIT_S


def test_a_new_connection_ends_the_oldest_of_too_many() -> None:
    registry = CollectorRegistry()
    Meter(registry)
    with capture_logs() as logged:
        serve_metrics(0, "127.0.0.1", registry, setting="metrics_port")
    address = ("127.0.0.1", logged[0]["port"])
    idle = [socket.create_connection(address, LIMIT_S) for _ in range(MAX_CONNECTIONS + 4)]
    try:
        for each in idle[:4]:
            assert each.recv(1) == b""  # it made room for a newer one
        with urllib.request.urlopen(f"http://{place_of(*address)}/metrics", timeout=LIMIT_S) as answer:
            assert b"process_cpu_seconds_total" in answer.read()
    finally:
        for each in idle:
            each.close()
