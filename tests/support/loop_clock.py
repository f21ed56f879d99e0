"""Clock of an event loop that stands still until a test advances it, so that no timer depends on the machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

TURNS = 10  # of the loop, in which everything that is due runs, and bytes on the loopback device arrive


class LoopClock:
    """Time of the running loop. Timers of asyncio, and of servers in this loop, follow it."""

    def __init__(self, now: float) -> None:
        self.now = self._begun = now

    @property
    def elapsed(self) -> float:
        return self.now - self._begun

    async def advance(self, seconds: float) -> None:
        """Let time pass, and let run what is due then."""
        self.now += seconds
        await turns()


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


@contextmanager
def stopped_clock() -> Iterator[LoopClock]:
    """Stop the running loop's clock while the body runs. Afterwards it goes on from the time it shows."""
    loop = asyncio.get_running_loop()
    clock, real = LoopClock(loop.time()), loop.time
    loop.time = lambda: clock.now  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        late = clock.now - real()
        loop.time = lambda: real() + late  # type: ignore[method-assign]
