"""Prometheus metrics of the batch runner."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from shared.metrics import tasks as declared
from shared.metrics.meter import Meter


class TasksMetrics:
    """The metrics of one batch-runner process; /metrics shows `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        meter = Meter(self.registry)
        self.batches = meter.values(declared.BATCHES)
        self.lines = meter.values(declared.LINES)
        self.running = meter.values(declared.RUNNING)
        self.limited = meter.values(declared.LIMITED)
        self.duplicates = meter.values(declared.DUPLICATES)
