"""Time that a draining worker gives its requests to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Grace:
    """Grace time of one worker, in seconds, which may be shortened while it passes."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout: asyncio.Timeout | None = None  # while `wait` waits

    def shorten(self, seconds: float) -> None:
        """Let the time end in at most `seconds` from now."""
        self._seconds = min(seconds, self._seconds)
        if self._timeout is not None:
            until = asyncio.get_running_loop().time() + seconds
            self._timeout.reschedule(min(until, self._timeout.when() or 0))

    async def wait(self, is_idle: Callable[[], bool], changed: asyncio.Event) -> None:
        """Wait until it is idle, which is checked whenever it has `changed`. Raises TimeoutError."""
        try:
            async with asyncio.timeout(self._seconds) as self._timeout:
                while not is_idle():
                    changed.clear()
                    await changed.wait()
        finally:
            self._timeout = None
