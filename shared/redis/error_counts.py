"""Counts of failed calls to Redis, for Prometheus."""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import AuthenticationError, ConnectionError, NoPermissionError, TimeoutError

from shared.metrics.common import REDIS_ERRORS

KINDS: tuple[tuple[str, tuple[type[BaseException], ...]], ...] = (  # the first that fits
    ("timeout", (TimeoutError, builtins.TimeoutError)),
    ("refused", (AuthenticationError, NoPermissionError)),
    ("connection", (ConnectionError, OSError)),
)


class RedisErrors(Collector):
    """Failed calls of one process, by kind."""

    def __init__(self) -> None:
        self.counts = Counter(dict.fromkeys((*(kind for kind, _ in KINDS), "other"), 0))

    def note(self, error: BaseException) -> None:
        self.counts[next((kind for kind, classes in KINDS if isinstance(error, classes)), "other")] += 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(REDIS_ERRORS.name, REDIS_ERRORS.text, labels=REDIS_ERRORS.labels)
        for kind, count in self.counts.items():
            family.add_metric([kind], count)
        yield family
