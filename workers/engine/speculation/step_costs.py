"""Measured time of steps by their number of rows, which decides how many drafted tokens pay."""

from __future__ import annotations

import time
from bisect import bisect, insort
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Protocol

import torch

SAMPLES = 5  # of each size; their median counts, as other processes disturb single steps
FORGET_AFTER_STEPS = 512  # an old measurement may be from other lengths, or another load of the machine
ROWS_OF_WEIGHTS = 16  # reading the weights takes as long as computing so many rows: for sizes not measured


def step_clock(device: torch.device) -> Callable[[], float]:
    """Return the clock of steps: on the CPU, the thread's own time, which other processes hardly disturb."""
    return time.thread_time if device.type == "cpu" else time.perf_counter


class Costs(Protocol):
    """Time of a step as a function of its rows."""

    def record(self, rows: int, seconds: float) -> None:
        """Learn from a step that only generated."""

    def seconds(self, rows: int) -> float | None:
        """Return the expected time of a step with so many rows; None if nothing is known yet."""


class StepCosts:
    """Costs by measurement; see `Costs`."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}
        self._sizes: list[int] = []  # of the medians, in order
        self._measured_at: dict[int, int] = {}
        self._steps = 0

    def record(self, rows: int, seconds: float) -> None:
        self._steps += 1
        if rows not in self._samples:
            self._samples[rows] = deque(maxlen=SAMPLES)
            insort(self._sizes, rows)
        samples = self._samples[rows]
        samples.append(seconds)
        self._medians[rows] = median(samples)
        self._measured_at[rows] = self._steps
        if self._steps % FORGET_AFTER_STEPS == 0:
            for size in [size for size, at in self._measured_at.items() if at <= self._steps - FORGET_AFTER_STEPS]:
                del self._samples[size], self._medians[size], self._measured_at[size]
            self._sizes = sorted(self._medians)

    def seconds(self, rows: int) -> float | None:
        if (found := self._medians.get(rows)) is not None:
            return found
        place = bisect(self._sizes, rows)
        below = self._sizes[place - 1] if place else None
        above = self._sizes[place] if place < len(self._sizes) else None
        if below is not None and above is not None:
            share = (rows - below) / (above - below)
            return self._medians[below] * (1 - share) + self._medians[above] * share
        nearest = below or above
        if nearest is None:
            return None
        return self._medians[nearest] * (ROWS_OF_WEIGHTS + rows) / (ROWS_OF_WEIGHTS + nearest)
