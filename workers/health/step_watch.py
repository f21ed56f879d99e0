"""Decides whether the engine's current step hangs, from the time it takes and the CPU time that it uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from workers.engine_thread import Step

INTERVAL_S = 0.25  # between two observations, at most
OBSERVATIONS = 16  # per step_timeout, at least
COMPUTING_SHARE = 0.01  # of an interval; a thread that polls in vain uses less, one that shares its core uses more
COMPUTING_FACTOR = 60  # CPU time that a step may use, in multiples of step_timeout


@dataclass(frozen=True)
class Hang:
    """A step that hangs: it waits for something, or computes without an end. `seconds` of the one or the other."""

    kind: Literal["waiting", "computing"]
    seconds: float


class StepWatch:
    """Observes the engine's step at regular intervals.

    A step that computes may take long: a long prompt on a slow or busy machine does. It hangs if it has waited for
    `step_timeout` seconds, or has used COMPUTING_FACTOR times as much CPU time. An interval counts for at most
    twice its length, so that time in which the whole process was suspended does not count.
    """

    def __init__(self, step_timeout: float) -> None:
        self.interval = min(INTERVAL_S, step_timeout / OBSERVATIONS)
        self._step_timeout = step_timeout
        self._step: Step | None = None
        self._observed = 0.0
        self._cpu: float | None = None
        self._waited = self._computed = 0.0

    def observe(self, step: Step | None, now: float, cpu_time: Callable[[], float]) -> Hang | None:
        """Return the hang of the step that runs now, if it hangs.

        Args:
            now: by time.monotonic.
            cpu_time: returns the seconds of CPU time that the engine has used so far. It is called only for a step
                that the last observation found too.
        """
        if step is None or step != self._step:
            self._step, self._cpu, self._computed = step, None, 0.0
            self._waited = 0.0 if step is None else self._counted(now - step.began)
        else:
            self._count(self._counted(now - self._observed), cpu_time())
        self._observed = now
        if self._waited >= self._step_timeout:
            return Hang("waiting", self._waited)
        if self._computed >= COMPUTING_FACTOR * self._step_timeout:
            return Hang("computing", self._computed)
        return None

    def _count(self, elapsed: float, cpu: float) -> None:
        """Count an interval as waiting or as computing; the first one, of unknown CPU time, as waiting."""
        used = 0.0 if self._cpu is None else abs(cpu - self._cpu)  # it decreases when a child process has ended
        self._cpu = cpu
        self._computed += used
        self._waited = 0.0 if used >= COMPUTING_SHARE * elapsed else self._waited + elapsed

    def _counted(self, elapsed: float) -> float:
        return min(elapsed, 2 * self.interval)
