"""Memory that requests need in Redis: the formulas measured by `headrace bench memory`.

docs/redis.md has the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

# The request for which `headrace doctor` and docs/redis.md give single figures.
EXAMPLE_PROMPT_BYTES = 1024
EXAMPLE_ANSWER_TOKENS = 200


@dataclass(frozen=True)
class Linear:
    """The number of bytes `base` + `each` * size."""

    base: float
    each: float

    def __call__(self, size: int) -> float:
        return self.base + self.each * size

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> Linear:
        """Fit a line to points (size, bytes) by least squares."""
        each, base = linear_regression([size for size, _ in points], [taken for _, taken in points])
        return cls(base, each)


@dataclass(frozen=True)
class Sizing:
    """Bytes in Redis: of a waiting request by the bytes of its prompt, of a finished one by its answer's tokens."""

    waiting: Linear
    finished: Linear


MEASURED = Sizing(waiting=Linear(976, 1.00), finished=Linear(4881, 37.18))
