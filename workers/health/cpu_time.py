"""CPU time of an engine: of its thread, and of the processes that this process has started."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STATE_FIELD = 2  # of /proc/<pid>/stat, after the name in parentheses
USER_FIELD, SYSTEM_FIELD = 13 - STATE_FIELD, 14 - STATE_FIELD


def engine_cpu_time(thread_ident: int) -> Callable[[], float]:
    """Return a clock of the CPU time, in seconds, of a thread of this process and of all its child processes.

    Compilers and the workers of a runtime compute in child processes while the thread waits for them. Where the
    system has no clock of a thread, it is the CPU time of the whole process.
    """
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.process_time
    clock = time.pthread_getcpuclockid(thread_ident)
    return lambda: _thread_time(clock) + sum(map(_process_time, _descendants(os.getpid())))


def _thread_time(clock: int) -> float:
    """Return the CPU time of a thread; 0 once it has ended."""
    with suppress(OSError):
        return time.clock_gettime(clock)
    return 0.0


def _descendants(pid: int) -> Iterator[int]:
    with suppress(OSError):  # ended, or no such file on this system
        for listing in (PROC / str(pid) / "task").glob("*/children"):
            for child in map(int, listing.read_text().split()):
                yield child
                yield from _descendants(child)


def _process_time(pid: int) -> float:
    """Return the CPU time of a process; 0 once it has ended."""
    with suppress(OSError):
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[USER_FIELD]) + int(fields[SYSTEM_FIELD])) / TICKS_PER_S
    return 0.0
