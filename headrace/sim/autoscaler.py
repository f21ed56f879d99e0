"""The interface of autoscalers: the state that they see, and the number of workers that they decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

SYNC_S = 15.0  # the controller manager's --horizontal-pod-autoscaler-sync-period


@dataclass(frozen=True)
class Observation:
    """The state of an installation at one time.

    Attributes:
        replicas: workers that exist, ready or starting.
        utilization: share of the last SYNC_S seconds that each ready worker computed, in percent.
        waiting: requests that wait for a worker.
        held: requests that workers compute.
    """

    at: float
    replicas: int
    utilization: Sequence[float]
    waiting: int
    held: int


class Autoscaler(Protocol):
    """Decides how many workers there should be."""

    @property
    def initial(self) -> int:
        """Number of workers at the start."""

    def decide(self, seen: Observation) -> int:
        """Return the number of workers from now on; called every SYNC_S seconds."""

    def wake(self, seen: Observation) -> int:
        """Return the number of workers from now on; called when a request arrives and there is no worker."""


@dataclass(frozen=True)
class Fixed:
    """A constant number of workers, to compare with."""

    replicas: int

    @property
    def initial(self) -> int:
        return self.replicas

    def decide(self, seen: Observation) -> int:
        return self.replicas

    def wake(self, seen: Observation) -> int:
        return self.replicas
