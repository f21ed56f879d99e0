"""Choice of a process' tracer by its settings."""

from __future__ import annotations

from typing import Literal

from shared.errors import ConfigError
from shared.settings import Settings
from shared.tracing.interface import Tracer

Process = Literal["api", "worker", "tasks"]


def open_tracer(settings: Settings, process: Process) -> Tracer | None:
    """Return the tracer of this process; None where tracing is off.

    Raises ConfigError if OpenTelemetry is not installed, or refuses a variable of its own.
    """
    if settings.otel_endpoint is None:
        return None
    try:
        from shared.tracing.otel import OtelTracer  # noqa: PLC0415  OpenTelemetry is optional
    except ImportError as error:
        raise ConfigError(
            f"otel_endpoint needs the package headrace[otel]: {error}", param="otel_endpoint"
        ) from error
    return OtelTracer.from_settings(settings, process)
