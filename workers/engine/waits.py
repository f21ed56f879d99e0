"""Times for which the choices of one run do not compute: before their start, and while they are preempted."""

from __future__ import annotations

import time

import msgspec


class EngineWaits(msgspec.Struct, frozen=True, gc=False):
    """Seconds until a run was started, how often a choice of it was preempted, and seconds while one was."""

    waited: float = 0.0
    preemptions: int = 0
    preempted: float = 0.0


class WaitClock:
    """Measures the waits of one run, whose choices share it.

    Attributes:
        changed: something was measured since the last `take`.
    """

    __slots__ = ("_added", "_paused", "_paused_at", "_preempted", "_preemptions", "_waited", "changed")

    def __init__(self) -> None:
        self._added = time.monotonic()
        self._waited = self._preempted = self._paused_at = 0.0
        self._preemptions = self._paused = 0
        self.changed = False

    def start(self) -> None:
        """Note that the engine starts the run."""
        self._waited, self.changed = time.monotonic() - self._added, True

    def preempt(self) -> None:
        """Note that a choice is preempted."""
        if not self._paused:
            self._paused_at = time.monotonic()
        self._paused += 1
        self._preemptions += 1

    def resume(self) -> None:
        """Note that a preempted choice runs again."""
        self._paused -= 1
        if not self._paused:
            self._preempted += time.monotonic() - self._paused_at
        self.changed = True

    def take(self) -> EngineWaits:
        """Return what was measured so far."""
        self.changed = False
        return EngineWaits(self._waited, self._preemptions, self._preempted)
