"""CPU time that other processes used during a measurement."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

MAX_FOREIGN_SHARE = 0.05  # of the cores; above it, a measurement is not reliable


@dataclass
class ForeignLoad:
    """`share` of the machine's cores, 0 to 1, that other processes and the hypervisor used."""

    share: float = 0.0


@contextmanager
def foreign_load() -> Iterator[ForeignLoad]:
    """Measure while the body runs.

    This process and its descendants do not count as foreign; none of them may end meanwhile.
    """
    found = ForeignLoad()
    start, busy, own = time.perf_counter(), _busy_seconds(), _own_seconds()
    yield found
    elapsed = time.perf_counter() - start
    others = (_busy_seconds() - busy) - (_own_seconds() - own)
    found.share = max(0.0, others / (elapsed * (psutil.cpu_count() or 1)))


def _busy_seconds() -> float:
    """Return the seconds for which all cores together have been busy."""
    times = psutil.cpu_times()
    total: float = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    return total


def _own_seconds() -> float:
    """Return the CPU seconds of this process and its descendants."""
    process = psutil.Process()
    spent = [member.cpu_times() for member in (process, *process.children(recursive=True))]
    return sum(times.user + times.system for times in spent)
