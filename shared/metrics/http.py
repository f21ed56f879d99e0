"""Serves the metrics of a process that has no HTTP server of its own."""

from __future__ import annotations

import structlog
from prometheus_client import CollectorRegistry, start_http_server

from shared.errors import ConfigError

log = structlog.get_logger(__name__)


def serve_metrics(port: int | None, host: str, registry: CollectorRegistry, *, setting: str) -> None:
    """Serve /metrics in a thread, unless `port` is None. Raises ConfigError if the port cannot be used."""
    if port is None:
        return
    try:
        server, _ = start_http_server(port, host, registry=registry)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{setting} {port} on {host} cannot be used ({error}): set a free port, or 0 for any",
            param=setting,
        ) from None
    log.info("metrics_listening", port=server.server_port)
