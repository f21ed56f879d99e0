"""Scale of the chaos cases: short for every change, full for what the contract promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class Scale:
    """Scale of a run. A call with the short scale's value and the full scale's returns the one that applies.

    Attributes:
        minutes: duration of the full soak.
    """

    full: bool
    minutes: float

    def __call__(self, short: Value, full: Value) -> Value:
        return full if self.full else short

    @property
    def lease(self) -> float:
        """Lease in seconds: the default at full scale, less at short scale."""
        return self(1.0, 3.0)
