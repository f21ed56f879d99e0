"""Time limit of waits in tests, and a measure of waits that does not depend on the machine's speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

# It only guards against a hang: no test comes near it unless something is broken. It is below pytest's own timeout,
# so that the failure shows what the test waited for.
LIMIT_S = 120.0
TICK_S = 0.02

POLL_S = 0.05  # between looks at another process


def until(holds: Callable[[], bool], *, despite: tuple[type[Exception], ...] = ()) -> None:
    """Wait until a condition on another process holds; an exception of `despite` counts as false."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            if holds():
                return
        except despite:
            pass
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


class Ticks:
    """Seconds that passed for the event loop. Time in which the loop did not run does not count."""

    def __init__(self) -> None:
        self._count = 0

    @property
    def seconds(self) -> float:
        return self._count * TICK_S

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._count += 1


@asynccontextmanager
async def ticking() -> AsyncIterator[Ticks]:
    """Count the loop's time while the body runs.

    A timeout of the same loop that is due ends its wait in the iteration in which the next tick is counted. So a
    bound on `seconds` holds on a machine that stalls, and still fails if the code waits twice as long.
    """
    ticks = Ticks()
    task = asyncio.create_task(ticks.run())
    try:
        yield ticks
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
