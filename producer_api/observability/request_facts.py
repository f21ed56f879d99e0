"""Which requests' ends the request log tells of by itself, in the line of the HTTP request that awaits them."""

from __future__ import annotations

import time

LEFT = 60.0  # seconds after the HTTP request within which its end is settled


class Told:
    """Of one process: one line tells an end, whether it is settled before the HTTP request is over or after."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._settled: set[str] = set()  # of those that are open
        self._left: dict[str, float] = {}  # when their HTTP request was over, the oldest first

    def begin(self, job_id: str) -> None:
        """An HTTP request awaits that end."""
        self._open.add(job_id)

    def end(self, job_id: str, *, goes_on: bool) -> None:
        """The HTTP request is over, and its line written. `goes_on`: the answer does, and its end will be news."""
        self._open.discard(job_id)
        if job_id in self._settled:
            self._settled.discard(job_id)
        elif not goes_on:
            self._left[job_id] = time.monotonic()
        self._forget()

    def settled(self, job_id: str) -> bool:
        """Whether its end needs no other line."""
        if job_id in self._open:
            self._settled.add(job_id)
            return True
        return self._left.pop(job_id, None) is not None

    def _forget(self) -> None:
        now = time.monotonic()
        while self._left and now - self._left[oldest := next(iter(self._left))] > LEFT:
            del self._left[oldest]
