"""What else used the machine's cores while something was measured. It does not know what was measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

QUIET = 0.05  # a larger share of the cores for others makes a measurement doubtful


@dataclass
class Foreign:
    """`share` of the machine's cores, 0 to 1, that went to processes not ours, or to the hypervisor."""

    share: float = 0.0


@contextmanager
def foreign_load() -> Iterator[Foreign]:
    """Measures until it is left. Ours are this process and its descendants, none of which may end meanwhile."""
    found = Foreign()
    start, busy, own = time.perf_counter(), _busy(), _own()
    yield found
    elapsed = time.perf_counter() - start
    others = (_busy() - busy) - (_own() - own)
    found.share = max(0.0, others / (elapsed * (psutil.cpu_count() or 1)))


def _busy() -> float:
    """Seconds that all cores together have not been idle."""
    times = psutil.cpu_times()
    total: float = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    return total


def _own() -> float:
    process = psutil.Process()
    spent = [member.cpu_times() for member in (process, *process.children(recursive=True))]
    return sum(times.user + times.system for times in spent)
