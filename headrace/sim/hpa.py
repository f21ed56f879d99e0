"""The algorithm of Kubernetes' HorizontalPodAutoscaler (autoscaling/v2) with its default behaviour.

https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details; the order of the steps
is that of pkg/controller/podautoscaler in Kubernetes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from headrace.sim.autoscaler import SYNC_S, Observation

TOLERANCE = 0.1
STABILIZATION_S = 300.0  # for scaling down; scaling up has none
SCALE_UP_PODS, SCALE_UP_PERCENT, PERIOD_S = 4, 100, 15.0


class HpaMetric(Protocol):
    """A metric of an HPA."""

    def replicas(self, seen: Observation) -> int:
        """Return the number of replicas that this metric asks for."""


@dataclass(frozen=True)
class Utilization:
    """`type: Pods` with an AverageValue, such as gpu_utilization 80.

    A worker that is still starting has no value. It counts as 0 when the others ask for more workers, and as at the
    target when they ask for fewer.
    """

    target: float = 80.0

    def replicas(self, seen: Observation) -> int:
        current, values = seen.replicas, list(seen.utilization)
        if not values:
            return current
        ratio = sum(values) / len(values) / self.target
        missing = current - len(values)
        if not missing:
            return current if abs(ratio - 1) <= TOLERANCE else math.ceil(ratio * current)
        filled = values + [0.0 if ratio > 1 else self.target] * missing
        new = sum(filled) / len(filled) / self.target
        if abs(new - 1) <= TOLERANCE or (ratio < 1 < new) or (new < 1 < ratio):
            return current
        return math.ceil(new * len(filled))


@dataclass(frozen=True)
class AverageQueue:
    """`type: External` with an AverageValue: requests per worker, waiting ones or also those that workers hold."""

    target: float = 10.0
    held: bool = False

    def replicas(self, seen: Observation) -> int:
        usage = seen.waiting + (seen.held if self.held else 0)
        if seen.replicas and abs(usage / (self.target * seen.replicas) - 1) <= TOLERANCE:
            return seen.replicas
        return math.ceil(usage / self.target)


@dataclass
class Hpa:
    """An HPA, which takes the highest number that its metrics ask for.

    Attributes:
        delay: how many syncs old its values are: Prometheus scrapes, and the adapter asks Prometheus.
    """

    metrics: Sequence[HpaMetric]
    least: int = 2
    most: int = 10
    delay: int = 1
    _seen: deque[Observation] = field(default_factory=deque)
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)
    _added: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def initial(self) -> int:
        return self.least

    def decide(self, seen: Observation) -> int:
        self._seen.append(seen)
        if len(self._seen) <= self.delay:
            return seen.replicas
        old = self._seen.popleft()
        known = Observation(seen.at, seen.replicas, old.utilization[: seen.replicas], old.waiting, old.held)
        wanted = max(metric.replicas(known) for metric in self.metrics)
        return self._limited(self._stabilized(wanted, seen), seen)

    def wake(self, seen: Observation) -> int:
        return seen.replicas

    def _stabilized(self, wanted: int, seen: Observation) -> int:
        """Scale down only to the highest number of the last STABILIZATION_S."""
        while self._wanted and self._wanted[0][0] < seen.at - STABILIZATION_S:
            self._wanted.popleft()
        self._wanted.append((seen.at, wanted))
        return max(wanted, min(seen.replicas, max(number for _, number in self._wanted)))

    def _limited(self, wanted: int, seen: Observation) -> int:
        """Apply the policies for scaling up (the larger of the two) and the bounds; scaling down may remove all."""
        while self._added and self._added[0][0] <= seen.at - PERIOD_S:
            self._added.popleft()
        before = seen.replicas - sum(number for _, number in self._added)
        limit = max(before + SCALE_UP_PODS, math.ceil(before * (1 + SCALE_UP_PERCENT / 100)))
        decided = max(self.least, min(self.most, wanted, max(limit, seen.replicas)))
        if decided > seen.replicas:
            self._added.append((seen.at, decided - seen.replicas))
        return decided


assert PERIOD_S <= SYNC_S, "a period spans at most one sync, as in the default behaviour"
