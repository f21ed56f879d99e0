"""History of a queue in memory: how far each class got, and pauses."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from shared.protocol import PriorityClass, Stay
from shared.queue import interface

MAX_STEPS, MAX_PAUSES = 64, 128  # that are kept
MAX_SHOWN = 12  # positions and pauses of one request


@dataclass
class Pause:
    """A pause of the model's gate, under "", or of a tenant's; `end` is None while it lasts."""

    start: float
    end: float | None
    gate: str


class QueueHistory:
    """Requests of each class that were taken, noted from time to time, and pauses. Times are in seconds."""

    def __init__(self) -> None:
        self._taken: Counter[PriorityClass] = Counter()
        self._steps: list[tuple[float, Counter[PriorityClass]]] = []
        self._pauses: deque[Pause] = deque(maxlen=MAX_PAUSES)

    def note_step(self, now: float) -> None:
        """Note how many requests of each class were taken so far, at most once in STEP_S."""
        if self._steps and now - self._steps[-1][0] < interface.STEP_S:
            return
        if len(self._steps) >= MAX_STEPS:
            self._steps = self._steps[1::2]
        self._steps.append((now, Counter(self._taken)))

    def note_taken(self, priority: PriorityClass) -> None:
        self._taken[priority] += 1

    def note_gate(self, gate: str, now: float, *, paused: bool) -> None:
        """Note that a gate is paused or resumed, if that changes it."""
        lasting = [pause for pause in self._pauses if pause.gate == gate and pause.end is None]
        if paused and not lasting:
            self._pauses.append(Pause(now, None, gate))
        for pause in () if paused else lasting:
            pause.end = now

    def extend(
        self, stay: Stay, priority: PriorityClass, tenant: str, place: int, now: float, *, min_wait: float = 0.0
    ) -> Stay:
        """Return a stay with what happened until `now`, when the request has the place `place` in its class.

        Positions of a request that waited for less than `min_wait` are left out.
        """
        positions = [
            (at, place + self._taken[priority] - taken[priority]) for at, taken in self._steps if at > stay.entered
        ]
        spans = [
            (max(pause.start, stay.entered), pause.end)
            for pause in self._pauses
            if pause.gate in ("", tenant) and (pause.end is None or pause.end > stay.entered)
        ]
        return msgspec.structs.replace(
            stay,
            positions=_spread(positions) if now - stay.entered >= min_wait else (),
            pauses=tuple(spans[-MAX_SHOWN:]),
        )


def _spread(positions: Sequence[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    """Return at most MAX_SHOWN of the positions, spread over them."""
    stride = max(1, math.ceil(len(positions) / MAX_SHOWN))
    return tuple(positions[(len(positions) - 1) % stride :: stride])
