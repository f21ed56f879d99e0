"""What a worker's Kafka side counts, in the worker's registry. Its thread writes these, /metrics reads them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

PREFIX = "headrace_kafka"


class KafkaMetrics:
    """Gauges of the partitions that this worker owns now, and counts since its start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Gauge(
            f"{PREFIX}_lag", "Records from the watermark to the end", ("topic", "partition"), registry=registry
        )
        self._watermark = Gauge(
            f"{PREFIX}_watermark", "First offset that is not known done", ("topic", "partition"), registry=registry
        )
        self.in_flight = Gauge(f"{PREFIX}_in_flight", "Records taken and not done", registry=registry)
        self.results = Counter(f"{PREFIX}_results", "Results written", registry=registry)
        self.dead_letters = Counter(f"{PREFIX}_dead_letters", "Records set aside", ("code",), registry=registry)
        self.failures = Counter(f"{PREFIX}_failures", "Failed calls of the brokers", registry=registry)

    def show(self, topic: str, partition: int, watermark: int, end: int | None) -> None:
        self._watermark.labels(topic, partition).set(watermark)
        if end is not None:
            self._lag.labels(topic, partition).set(max(0, end - watermark))

    def clear(self) -> None:
        """The partitions are others' now."""
        self._lag.clear()
        self._watermark.clear()
