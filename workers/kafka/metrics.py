"""Metrics of a worker's Kafka intake. The consumer thread writes them."""

from __future__ import annotations

from shared.metrics import common as declared
from shared.metrics.meter import Meter


class KafkaMetrics:
    """Levels of the partitions that this worker owns, and counts since its start."""

    def __init__(self, meter: Meter) -> None:
        self._lag = meter.values(declared.LAG)
        self._watermark = meter.values(declared.WATERMARK)
        self.in_flight = meter.values(declared.IN_FLIGHT)
        self.results = meter.values(declared.RESULTS)
        self.dead_letters = meter.values(declared.DEAD_RECORDS)
        self.errors = meter.values(declared.KAFKA_ERRORS)

    def set_position(self, topic: str, partition: int, watermark: int, end: int | None) -> None:
        self._watermark.labels(topic, str(partition)).set(watermark)
        if end is not None:
            self._lag.labels(topic, str(partition)).set(max(0, end - watermark))

    def clear(self) -> None:
        """Drop the levels of partitions that this worker no longer owns."""
        self._lag.clear()
        self._watermark.clear()
