"""Count of failed calls to Kafka of a process whose queue it is, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from shared.metrics.common import KAFKA_ERRORS


class KafkaErrors(Collector):
    """Failed calls of one process."""

    def __init__(self) -> None:
        self._count = 0

    def note(self) -> None:
        self._count += 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(KAFKA_ERRORS.name, KAFKA_ERRORS.text, value=self._count)
