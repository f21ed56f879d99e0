"""Suppression of this process's stderr while a C++ library runs that prints there and cannot be configured not to.

xgrammar's warnings quote the request. Headrace's log uses a descriptor of its own and is not affected.
"""

from __future__ import annotations

import os
import threading

STDERR = 2


class MutedStderr:
    """Context manager that discards output to stderr while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._kept = -1

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._kept = os.dup(STDERR)
                null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(null, STDERR)
                os.close(null)
            self._inside += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                os.dup2(self._kept, STDERR)
                os.close(self._kept)
