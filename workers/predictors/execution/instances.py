"""Instances of one version, each in a thread of its own, which takes batches and executes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import structlog

from shared.errors import HeadraceError
from workers.engine.interface import EngineOutput
from workers.predictors.execution.executor import Clock, Executor
from workers.predictors.scheduling.batcher import Batcher
from workers.predictors.scheduling.job import Batch, Job, SequenceKey

NS_PER_S = 1_000_000_000

log = structlog.get_logger(__name__)


class InstanceRunner:
    """Runs the requests of one version. Its methods are called with `lock` held.

    Args:
        executors: one for each instance.
        deliver: takes the outputs of requests, without the lock.
        refuse: takes requests that waited too long, with their error, without the lock.

    Attributes:
        running: the number of requests that are being executed.
        closed: completes when the last request has ended after `close`, and the instances are closed.
    """

    def __init__(
        self,
        name: str,
        executors: Sequence[Executor],
        batcher: Batcher,
        *,
        lock: threading.Lock,
        clock: Clock,
        deliver: Callable[[Job, EngineOutput], None],
        refuse: Callable[[Job, HeadraceError], None],
    ) -> None:
        self._executors = executors
        self._batcher = batcher
        self._lock = lock
        self._changed = threading.Condition(lock)
        self._clock = clock
        self._deliver = deliver
        self._refuse = refuse
        self._closing = False
        self._open = len(executors)
        self.running = 0
        self.closed: Future[None] = Future()
        self._added = threading.Condition(lock)  # for the thread that applies timeouts while instances are busy
        for number in range(len(executors)):
            threading.Thread(target=self._serve, args=(number,), name=f"{name}-{number}", daemon=True).start()
        if batcher.expires:
            threading.Thread(target=self._apply_timeouts, name=f"{name}-timeouts", daemon=True).start()

    @property
    def waiting(self) -> int:
        return len(self._batcher)

    def add(self, job: Job) -> None:
        """Queue a request. Raises HeadraceError if it is refused."""
        self._batcher.add(job, self._clock())
        self._changed.notify(len(self._executors) if self._batcher.binds else 1)
        self._added.notify()

    def begin(self, job: Job) -> None:
        """Do nothing: the instances take the requests."""

    def flush(self) -> None:
        """Do nothing: a dropped request leaves nothing to do."""

    def remove(self, job: Job) -> bool:
        """Drop a request that waits. Return False if it is being executed."""
        removed = self._batcher.remove(job)
        self._changed.notify_all()
        return removed

    def knows(self, key: SequenceKey) -> bool:
        """Return whether a sequence has begun here and may get further requests."""
        return self._batcher.knows(key)

    def close(self, *, sequences: bool = True) -> None:
        """End the threads after the last request, and with `sequences` after the last sequence."""
        self._closing = True
        if not sequences:
            self._batcher.forget()
        self._changed.notify_all()
        self._added.notify()

    def _serve(self, number: int) -> None:
        executor = self._executors[number]
        while (batch := self._next(number)) is not None:
            for job, output in executor.run(batch):
                self._deliver(job, output)
            with self._lock:
                self.running -= len(batch.jobs)
                self._batcher.finish(batch, self._clock())
                if self._batcher.binds or self._closing:
                    self._changed.notify_all()
        self._close(executor)

    def _next(self, number: int) -> Batch | None:
        """Wait for a batch. Return None when there will be none."""
        while True:
            with self._lock:
                now = self._clock()
                expired = self._batcher.expire(now)
                batch = self._batcher.take(number, now)
                if batch is not None:
                    self.running += len(batch.jobs)
                    if len(self._batcher):  # an idle instance may execute what is left, now or later
                        self._changed.notify()
                elif not expired:
                    if self._closing and self._batcher.drained:
                        return None
                    self._changed.wait(_seconds(self._batcher.wake_at, now))
            self._refuse_all(expired)
            if batch is not None:
                return batch

    def _apply_timeouts(self) -> None:
        """Refuse requests in time even if all instances are busy."""
        while True:
            with self._lock:
                now = self._clock()
                expired = self._batcher.expire(now)
                if not expired:
                    if self._closing and self._batcher.drained:
                        return
                    self._added.wait(_seconds(self._batcher.next_expiry(), now))
            self._refuse_all(expired)

    def _refuse_all(self, expired: list[tuple[Job, HeadraceError]]) -> None:
        for job, error in expired:
            self._refuse(job, error)

    def _close(self, executor: Executor) -> None:
        try:
            executor.close()
        except Exception:  # its model is gone either way
            log.exception("predictor_close_failed")
        with self._lock:
            self._open -= 1
            last = self._open == 0
        if last:
            self.closed.set_result(None)


def _seconds(time_ns: int | None, now: int) -> float | None:
    """Return the time until then for a wait; None for a wait without limit."""
    return None if time_ns is None else max(0, time_ns - now) / NS_PER_S
