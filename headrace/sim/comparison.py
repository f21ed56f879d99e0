"""`headrace sim autoscale`: several autoscalers on the same arrivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from headrace.sim.arrivals import Arrival
from headrace.sim.autoscaler import Autoscaler, Fixed
from headrace.sim.hpa import AverageQueue, Hpa, Utilization
from headrace.sim.keda import Keda
from headrace.sim.outcome import Outcome
from headrace.sim.simulation import Machine, Simulation


@dataclass(frozen=True)
class Targets:
    """Targets of the autoscalers, and the bounds that they share; KEDA goes down to zero.

    Attributes:
        utilization: percent of the time that a worker computes.
        queue: waiting requests per worker.
        keda: waiting and held requests per worker.
    """

    least: int = 2
    most: int = 10
    utilization: float = 80.0
    queue: float = 10.0
    keda: float = 24.0

    def autoscaler(self, name: str) -> Autoscaler:
        """Return a new autoscaler of POLICIES."""
        return POLICIES[name](self)

    def _hpa(self, *metrics: Utilization | AverageQueue) -> Hpa:
        return Hpa(metrics, self.least, self.most)

    def hpa_utilization(self) -> Hpa:
        return self._hpa(Utilization(self.utilization))

    def hpa_queue(self) -> Hpa:
        return self._hpa(AverageQueue(self.queue))

    def hpa_both(self) -> Hpa:
        return self._hpa(Utilization(self.utilization), AverageQueue(self.queue))


POLICIES: dict[str, Callable[[Targets], Autoscaler]] = {
    "fixed": lambda targets: Fixed(targets.most),
    "hpa-utilization": Targets.hpa_utilization,
    "hpa-queue": Targets.hpa_queue,
    "hpa-both": Targets.hpa_both,
    "keda": lambda targets: Keda(targets.keda, targets.most),
}

COLUMNS: tuple[tuple[str, str], ...] = (
    ("worker hours", "{worker_hours:.1f}"),
    ("starts", "{workers_started}"),
    ("wait p50, p99", "{wait_p50_s:.2f}, {wait_p99_s:.2f} s"),
    ("first token", "{first_token_p50_s:.2f}, {first_token_p99_s:.2f} s"),
    ("oldest", "{queue_age_max_s:.0f} s"),
    ("SLO", "{slo:.2%}"),
)


@dataclass
class Comparison:
    """The outcomes of a comparison, by policy."""

    arrivals: int
    ttft_target_s: float
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def summaries(self) -> dict[str, dict[str, Any]]:
        return {name: outcome.summary(self.ttft_target_s) for name, outcome in self.outcomes.items()}

    def as_dict(self) -> dict[str, Any]:
        return {"arrivals": self.arrivals, "ttft_target_s": self.ttft_target_s, "policies": self.summaries()}

    def table(self) -> Table:
        title = f"{self.arrivals:,} requests; SLO: first token within {self.ttft_target_s:g} s"
        table = Table("policy", *(name for name, _ in COLUMNS), title=title)
        for name, summary in self.summaries().items():
            table.add_row(name, *(form.format(**summary) for _, form in COLUMNS))
        return table


def compare(
    arrivals: Sequence[Arrival], machine: Machine, targets: Targets, policies: Sequence[str], ttft_target_s: float
) -> Comparison:
    """Simulate each of the policies."""
    found = Comparison(len(arrivals), ttft_target_s)
    for name in policies:
        found.outcomes[name] = Simulation(arrivals, machine, targets.autoscaler(name)).run()
    return found
