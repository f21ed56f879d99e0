"""Serves the metrics of a process that has no HTTP server of its own."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from shared.errors import ConfigError

MAX_CONNECTIONS = 16  # at a time, each with a thread; one more ends the oldest
TIMEOUT_S = 10.0  # for which a client may send nothing, or read nothing

log = structlog.get_logger(__name__)


class _Handler(WSGIRequestHandler):
    timeout = TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a scrape is no event."""


class _Server(ThreadingMixIn, WSGIServer):
    """HTTP server with a bounded number of threads. Idle connections cannot keep others out."""

    daemon_threads = True
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._open: dict[socket.socket, None] = {}  # oldest first
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > MAX_CONNECTIONS else None
            if oldest is not None:
                del self._open[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # which ends its thread
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: the client left, or was too slow."""


def serve_metrics(port: int | None, host: str, registry: CollectorRegistry, *, setting: str) -> None:
    """Serve /metrics in a thread, unless `port` is None. Raises ConfigError if the port cannot be used."""
    if port is None:
        return
    try:
        server = _Server(host, port)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{setting} {port} on {host} cannot be used ({error}): set a free port, or 0 for any",
            param=setting,
        ) from None
    server.set_app(make_wsgi_app(registry))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    log.info("metrics_listening", port=server.server_port)
