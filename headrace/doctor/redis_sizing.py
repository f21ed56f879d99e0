"""How much memory Redis needs: the formulas measured by `headrace bench memory`, and what follows from a bound.

docs/redis.md has the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

PROMPT = 1024  # bytes, and
TOKENS = 200  # what an answer has, where a single figure is told


@dataclass(frozen=True)
class Linear:
    """`base` + `each` * size, in bytes."""

    base: float
    each: float

    def __call__(self, size: int) -> float:
        return self.base + self.each * size

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> Linear:
        """The least squares' line through (size, bytes)."""
        each, base = linear_regression([size for size, _ in points], [taken for _, taken in points])
        return cls(base, each)


@dataclass(frozen=True)
class Sizing:
    """Bytes in Redis of a waiting request by its prompt's bytes, and of a finished one by its answer's tokens."""

    waiting: Linear
    finished: Linear


MEASURED = Sizing(waiting=Linear(640, 0.97), finished=Linear(4143, 52.06))
