"""Thread that runs jobs in order, until its owner is garbage collected."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue

import structlog

Job = Callable[[], None]

log = structlog.get_logger(__name__)


class Background:
    """A daemon thread with a bounded queue: a store that hangs must not keep the process from ending.

    Args:
        most: most jobs that wait.
    """

    def __init__(self, name: str, most: int) -> None:
        self._most = most
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._began: list[float] = []  # when the current job began
        threading.Thread(target=_run, args=(self._jobs, self._began), name=name, daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    def submit(self, job: Job) -> bool:
        """Queue a job. Return False if too many wait."""
        if self._jobs.qsize() >= self._most:
            return False
        self._jobs.put(job)
        return True

    def busy_for(self) -> float:
        """Return the seconds since the current job began, 0 without one."""
        began = self._began[:]
        return time.monotonic() - began[0] if began else 0.0


def _run(jobs: SimpleQueue[Job | None], began: list[float]) -> None:
    while (job := jobs.get()) is not None:
        began.append(time.monotonic())
        try:
            job()
        except Exception:  # a job handles what it expects; its request is computed
            log.exception("kv_tier_job_failed")
        began.clear()
        del job
