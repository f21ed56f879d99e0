"""Keeps off this process's stderr what a C++ library prints there by itself, and cannot be told not to.

xgrammar's warnings quote what was asked. Our own log has a descriptor of its own, and goes on.
"""

from __future__ import annotations

import os
import threading

STDERR = 2


class Silence:
    """While any thread is inside, what is written to stderr goes nowhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._kept = -1

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._kept = os.dup(STDERR)
                nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(nowhere, STDERR)
                os.close(nowhere)
            self._inside += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                os.dup2(self._kept, STDERR)
                os.close(self._kept)
