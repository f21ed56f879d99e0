"""Measure how long single callbacks hold the event loop, in CPU time of its thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

MAX_HELD_S = 0.05  # CPU time for which one callback may hold the loop


@dataclass
class Held:
    """Callback that held the loop longest.

    Attributes:
        longest: its CPU time in seconds. Time in which the thread did not run does not count, so that a loaded
            machine changes nothing.
        by: the callback.
    """

    longest: float = 0.0
    by: str = ""


@contextmanager
def watching_loop() -> Iterator[Held]:
    """Watch all callbacks while the body runs, on an event loop written in Python (not uvloop)."""
    held, run = Held(), asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        begun = time.thread_time()
        run(handle)
        if (took := time.thread_time() - begun) > held.longest:
            held.longest, held.by = took, repr(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        yield held
