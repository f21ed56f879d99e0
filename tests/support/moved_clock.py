"""Clock that a test moves, for code that takes a clock as an argument."""

from __future__ import annotations


class MovedClock:
    """Clock in seconds, like time.monotonic, whose time is `now`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
