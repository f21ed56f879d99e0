"""Metrics of a worker's Kafka intake, in the worker's registry. The consumer thread writes them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

PREFIX = "headrace_kafka"


class KafkaMetrics:
    """Gauges of the partitions that this worker owns, and counters since its start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Gauge(
            f"{PREFIX}_lag",
            "Records between the watermark and the end of the partition",
            ("topic", "partition"),
            registry=registry,
        )
        self._watermark = Gauge(
            f"{PREFIX}_watermark",
            "First offset that is not known to be done",
            ("topic", "partition"),
            registry=registry,
        )
        self.in_flight = Gauge(f"{PREFIX}_in_flight", "Records taken and not yet done", registry=registry)
        self.results = Counter(f"{PREFIX}_results", "Results written", registry=registry)
        self.dead_letters = Counter(
            f"{PREFIX}_dead_letters", "Records written to the dead-letter topic", ("code",), registry=registry
        )
        self.failures = Counter(f"{PREFIX}_failures", "Failed calls to the brokers", registry=registry)

    def set_position(self, topic: str, partition: int, watermark: int, end: int | None) -> None:
        self._watermark.labels(topic, partition).set(watermark)
        if end is not None:
            self._lag.labels(topic, partition).set(max(0, end - watermark))

    def clear(self) -> None:
        """Drop the gauges of partitions that this worker no longer owns."""
        self._lag.clear()
        self._watermark.clear()
