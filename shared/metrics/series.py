"""Values of a metric, one series for each combination of label values.

prometheus_client's own classes take a lock for each look-up and each increment, and search the buckets of a
histogram one by one; here an observation of a cached series costs a binary search and two additions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import Metric

from shared.metrics.declaration import Declaration, VllmName

MAX_SERIES = 1000  # of one metric; further ones are counted together
OTHER = "other"  # value of each label of that series


class Value:
    """A count, or a level. Only one thread writes it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount

    def dec(self, amount: float = 1) -> None:
        self.value -= amount

    def set(self, value: float) -> None:
        self.value = value


class Distribution:
    """Observations by bucket. Only one thread writes it.

    Attributes:
        counts: of each bucket alone, the last one without an upper bound.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self._bounds, value)] += times
        self.total += value * times


S = TypeVar("S", Value, Distribution)
Labels = tuple[str, ...]


class Family(Generic[S]):
    """The series of one metric."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration
        self._series: dict[Labels, S] = {}
        if not declaration.labels:
            self.labels()

    def labels(self, *values: str) -> S:
        """Return the series with these values of the labels; one for all others beyond MAX_SERIES."""
        found = self._series.get(values)
        if found is None:
            assert len(values) == len(self.declaration.labels)
            if len(self._series) >= MAX_SERIES:
                values = (OTHER,) * len(values)
            found = self._series.setdefault(values, self._make())
        return found

    def remove(self, first: str) -> None:
        """Remove the series with this value of the first label."""
        for values in [each for each in self._series if each[0] == first]:
            del self._series[values]

    def clear(self) -> None:
        self._series.clear()

    def own(self) -> Iterator[Metric]:
        """Yield the metric under its own name."""
        declared = self.declaration
        metric = Metric(declared.name, declared.text, declared.kind)
        for values, series in list(self._series.items()):
            self._add(metric, dict(zip(declared.labels, values, strict=True)), [series], declared.buckets)
        yield metric

    def vllm(self) -> Iterator[Metric]:
        """Yield the metric under each name that it has in vLLM."""
        for name in self.declaration.vllm:
            metric = Metric(f"vllm:{name.name}", self.declaration.text, self.declaration.kind)
            for labels, series in self._grouped(name).items():
                self._add(metric, dict(labels), series, name.buckets)
            yield metric

    def _grouped(self, name: VllmName) -> dict[tuple[tuple[str, str], ...], list[S]]:
        """Return the series that are one series in vLLM, by its labels."""
        grouped: dict[tuple[tuple[str, str], ...], list[S]] = {}
        for values, series in list(self._series.items()):
            labels = dict(zip(self.declaration.labels, values, strict=True))
            if any(labels[label] != value for label, value in name.where.items()):
                continue
            kept = {theirs: labels[ours] for ours, theirs in name.keep.items()}
            shown = {"model_name": labels["model"], "engine": "0", **kept, **name.constant}
            grouped.setdefault(tuple(shown.items()), []).append(series)
        return grouped

    def _make(self) -> S:
        raise NotImplementedError

    def _add(self, metric: Metric, labels: dict[str, str], series: list[S], bounds: tuple[float, ...]) -> None:
        raise NotImplementedError


class Values(Family[Value]):
    """Counts, or levels."""

    def inc(self, amount: float = 1) -> None:
        """Add to the only series of a metric without labels."""
        self.labels().inc(amount)

    def dec(self, amount: float = 1) -> None:
        self.labels().dec(amount)

    def set(self, value: float) -> None:
        self.labels().set(value)

    def _make(self) -> Value:
        return Value()

    def _add(self, metric: Metric, labels: dict[str, str], series: list[Value], bounds: tuple[float, ...]) -> None:
        suffix = "_total" if metric.type == "counter" else ""
        metric.add_sample(metric.name + suffix, labels, sum(each.value for each in series))


class Distributions(Family[Distribution]):
    """Histograms. Each counts in the buckets of all of its names, of which each name shows its own."""

    def __init__(self, declaration: Declaration) -> None:
        shown = {*declaration.buckets, *(bound for name in declaration.vllm for bound in name.buckets)}
        self._bounds = tuple(sorted(shown))
        super().__init__(declaration)

    def _make(self) -> Distribution:
        return Distribution(self._bounds)

    def _add(
        self, metric: Metric, labels: dict[str, str], series: list[Distribution], bounds: tuple[float, ...]
    ) -> None:
        counts = [sum(of_bucket) for of_bucket in zip(*(each.counts for each in series), strict=True)]
        *up_to, number = accumulate(counts)
        for bound, below in _chosen(zip(self._bounds, up_to, strict=True), bounds):
            metric.add_sample(f"{metric.name}_bucket", {**labels, "le": str(float(bound))}, below)
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": "+Inf"}, number)
        metric.add_sample(f"{metric.name}_count", labels, number)
        metric.add_sample(f"{metric.name}_sum", labels, sum(each.total for each in series))


def _chosen(counts: Iterable[tuple[float, int]], bounds: tuple[float, ...]) -> Iterator[tuple[float, int]]:
    wanted = set(bounds)
    return ((bound, below) for bound, below in counts if bound in wanted)
