"""The engine's thread: commands come in by an inbox, steps' outputs leave by a bounded outbox.

When nobody takes the outputs, the engine waits: a store that is down stops the work instead of filling the memory.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from shared.errors import EngineFailed, HeadraceError
from shared.protocol import PriorityClass
from workers.engine.interface import EngineOutput, EngineRequest, EngineStats, Generator
from workers.engine.stage import Stage

OUTBOX = 64  # steps whose outputs may be waiting to be written
GATHER = 0.001  # seconds between looks at a batch that waits for more requests
IDLE = 0.5  # seconds between looks at the stop flag while the outbox is full

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Abort:
    """Drop a request; with an error it ends so, after the tokens that it had."""

    job_id: str
    error: HeadraceError | None = None


@dataclass(frozen=True)
class Wake:
    """Look at the stop flag."""


class EngineLoop:
    """Runs a Generator in a thread of its own.

    Args:
        engine: only this thread calls it from now on, save for its tokenizer.
        notify: called in the engine's thread when there is something to `take`, or when the loop has failed.
    """

    def __init__(self, engine: Generator, notify: Callable[[], object]) -> None:
        self._engine = engine
        self._notify = notify
        self._inbox: queue.SimpleQueue[EngineRequest | Abort | Wake] = queue.SimpleQueue()
        self._outbox: queue.Queue[list[EngineOutput]] = queue.Queue(OUTBOX)
        self._stopping = threading.Event()
        self._urgent = threading.Event()
        engine.abandon_when(self._urgent.is_set)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.failure: BaseException | None = None
        self.stats: EngineStats = engine.stats()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current step and wait for the thread."""
        self._stopping.set()
        self._inbox.put(Wake())
        self.take()
        self._thread.join()

    def add(self, request: EngineRequest) -> None:
        self._inbox.put(request)
        if request.priority is PriorityClass.INTERACTIVE:
            self._urgent.set()  # after the request is in: whoever sees the one finds the other

    def abort(self, job_id: str, error: HeadraceError | None = None) -> None:
        self._inbox.put(Abort(job_id, error))

    def take(self) -> list[EngineOutput]:
        """All outputs since the last call, in order."""
        found: list[EngineOutput] = []
        while True:
            try:
                found += self._outbox.get_nowait()
            except queue.Empty:
                return found

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                refused = self._commands()
                outputs = refused + (self._engine.step() if self._engine.has_work() else [])
                self.stats = self._engine.stats()
                if outputs:
                    self._put(outputs)
        except Exception as error:  # the thread's last act: the worker stops with this failure
            log.exception("engine_failed")
            self.failure = error
            self._notify()

    def _patience(self) -> float | None:
        """Seconds to wait for a command before the next step; None without work."""
        if not self._engine.has_work():
            return None
        return GATHER if self.stats.waiting and not self.stats.running else 0

    def _put(self, outputs: list[EngineOutput]) -> None:
        while not self._stopping.is_set():
            try:
                self._outbox.put(outputs, timeout=IDLE)
            except queue.Full:
                continue
            self._notify()
            return

    def _commands(self) -> list[EngineOutput]:
        """Carry out what is in the inbox, waiting for something when there is no work; what was refused."""
        refused: list[EngineOutput] = []
        self._urgent.clear()
        patience = self._patience()
        while True:
            try:
                command = self._inbox.get(block=patience != 0, timeout=patience)
            except queue.Empty:
                return refused
            patience = 0
            if isinstance(command, Abort):
                if self._engine.abort(command.job_id) and command.error is not None:
                    refused.append(EngineOutput(command.job_id, finished=True, error=command.error))
            elif isinstance(command, EngineRequest):
                refused += self._add(command)

    def _add(self, request: EngineRequest) -> list[EngineOutput]:
        """Hand a request to the engine; the end of one that it refuses, or that makes it fail."""
        try:
            with Stage("admission to the engine", request.id):
                self._engine.add(request)
        except HeadraceError as error:
            if isinstance(error, EngineFailed):
                self._engine.abort(request.id)  # it may have been half taken in
            return [EngineOutput(request.id, finished=True, error=error)]
        return []
