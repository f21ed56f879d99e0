"""Collector of the metrics of one process, under Headrace's names, vLLM's, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.registry import Collector

from shared.metrics.declaration import Declaration
from shared.metrics.series import Distributions, Values
from shared.settings import MetricsNames


class Meter(Collector):
    """The metrics of one process; and, where the system reports them, the CPU time and memory of the process.

    Args:
        registry: shows them.
        names: whose names are shown. Metrics without a name in vLLM are Headrace's alone.

    Attributes:
        before: functions that are called before each look at the metrics, to bring levels up to date.
    """

    def __init__(self, registry: CollectorRegistry, names: MetricsNames = "headrace") -> None:
        self._names = names
        self._families: list[Values | Distributions] = []
        self.before: list[Callable[[], None]] = []
        self.registry = registry
        registry.register(self)
        ProcessCollector(registry=registry)

    def values(self, declaration: Declaration) -> Values:
        """Return the series of a counter or a gauge, which are shown from now on."""
        assert declaration.kind != "histogram"
        family = Values(declaration)
        self._families.append(family)
        return family

    def distributions(self, declaration: Declaration) -> Distributions:
        """Return the series of a histogram, which are shown from now on."""
        assert declaration.kind == "histogram"
        family = Distributions(declaration)
        self._families.append(family)
        return family

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the registry does not collect when it is built."""
        return []

    def collect(self) -> Iterator[Metric]:
        for bring_up_to_date in self.before:
            bring_up_to_date()
        for family in self._families:
            if self._names != "vllm":
                yield from family.own()
            if self._names != "headrace":
                yield from family.vllm()
