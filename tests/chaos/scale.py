"""How hard a case is run: a short form for every change, the full one for what the contract promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class Scale:
    """Called with a short form's value and the full form's, it gives the one that counts.

    Attributes:
        minutes: length of the full soak.
    """

    full: bool
    minutes: float

    def __call__(self, short: Value, full: Value) -> Value:
        return full if self.full else short

    @property
    def lease(self) -> float:
        """Seconds. The full form runs with the default, the short one with less, to be short."""
        return self(1.0, 3.0)
