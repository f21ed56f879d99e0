"""KEDA with an external-push scaler: it switches between zero and one, and an HPA does the rest."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.sim.autoscaler import SYNC_S, Observation
from headrace.sim.hpa import AverageQueue, Hpa

POLLING_S = 30.0
COOLDOWN_S = 300.0


@dataclass
class Keda:
    """A ScaledObject whose scaler reports waiting and held requests.

    The scaler pushes the first request of an idle model at once (StreamIsActive). The HPA asks KEDA, which asks the
    scaler, so that its values are current.

    Attributes:
        target: requests per worker.
        cooldown_s: how long a model must be idle before its last worker is removed.
    """

    target: float
    most: int = 10
    least: int = 0
    cooldown_s: float = COOLDOWN_S
    _hpa: Hpa = field(init=False)
    _active_at: float = 0.0
    _polled_at: float = 0.0

    def __post_init__(self) -> None:
        metric = AverageQueue(self.target, held=True)
        self._hpa = Hpa([metric], least=max(1, self.least), most=self.most, delay=0)

    @property
    def initial(self) -> int:
        return self.least

    def decide(self, seen: Observation) -> int:
        active = bool(seen.waiting or seen.held)
        if seen.at - self._polled_at >= POLLING_S - SYNC_S / 2:
            self._polled_at = seen.at
            if active:
                self._active_at = seen.at
        if seen.replicas == 0:
            return self.wake(seen) if active else 0
        if self.least == 0 and seen.at - self._active_at >= self.cooldown_s and not active:
            return 0
        return self._hpa.decide(seen)

    def wake(self, seen: Observation) -> int:
        self._active_at = seen.at
        return max(1, self.least)
