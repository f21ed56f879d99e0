"""Engine thread: commands arrive in an inbox, the outputs of steps leave through a bounded outbox.

The engine waits while the outbox is full: when Redis is down, the work stops instead of filling the memory.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from shared.errors import EngineFailed, HeadraceError
from shared.protocol import PriorityClass
from workers.engine.interface import EngineOutput, EngineRequest, Generator
from workers.engine.stage import Stage
from workers.engine.stats import EngineStats

MAX_QUEUED_STEPS = 64  # steps whose outputs may wait to be appended
BATCH_WAIT_POLL_S = 0.001  # between steps of a batch that waits for more requests
STOP_CHECK_INTERVAL_S = 0.5  # between checks whether to stop or to give up, while something else is waited for

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Abort:
    """Drop a run. With an error, an output with that error ends it."""

    run_id: str
    error: HeadraceError | None = None


@dataclass(frozen=True)
class Wake:
    """Check the stop flag, and whether there is work."""


@dataclass(frozen=True)
class Step:
    """One step of the engine, with the commands before it; `began` by time.monotonic."""

    number: int
    began: float


class EngineThread:
    """Runs a Generator in a separate thread.

    Args:
        engine: only this thread calls it from now on, except its tokenizer.
        notify: called in the engine's thread when there is something to `take`, or when the engine has failed.

    Attributes:
        step: the step that runs now; None while the thread waits for commands, or for room in the outbox.
        on_step: called in the engine's thread after each step with work, with its seconds and the engine's numbers.
    """

    def __init__(self, engine: Generator, notify: Callable[[], object]) -> None:
        self._engine = engine
        self._notify = notify
        self._inbox: queue.SimpleQueue[EngineRequest | Abort | Wake] = queue.SimpleQueue()
        self._outbox: queue.Queue[list[EngineOutput]] = queue.Queue(MAX_QUEUED_STEPS)
        self._stopping = threading.Event()
        self._abandoned = False
        self._urgent = threading.Event()
        engine.abandon_when(self._urgent.is_set)
        engine.wake_with(lambda: self._inbox.put(Wake()))
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._steps = 0
        self.step: Step | None = None
        self.on_step: Callable[[float, EngineStats], object] | None = None
        self.failure: BaseException | None = None
        self.stats: EngineStats = engine.stats()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current step and wait for the thread, unless it was abandoned."""
        self._stopping.set()
        self._inbox.put(Wake())
        self.take()
        while self._thread.is_alive() and not self._abandoned:
            self._thread.join(STOP_CHECK_INTERVAL_S)

    def abandon(self) -> None:
        """Give up the thread, whose current step may never end."""
        self._abandoned = True
        self._stopping.set()

    @property
    def ident(self) -> int | None:
        """Identifier of the thread; None before it is started."""
        return self._thread.ident

    def step_age(self) -> float | None:
        """Return the seconds since the current step began; None between steps."""
        step = self.step
        return None if step is None else time.monotonic() - step.began

    def stack(self) -> str:
        """Return where the thread is now, as lines of `file:line function`, the innermost call last."""
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001  public despite its name
        calls = [
            f"{each.f_code.co_filename}:{line} {each.f_code.co_qualname}"
            for each, line in traceback.walk_stack(frame)
        ]
        return "\n".join(calls[::-1]) if frame else ""  # without a frame, walk_stack walks the caller's

    def add(self, request: EngineRequest) -> None:
        self._inbox.put(request)
        if request.priority is PriorityClass.INTERACTIVE:
            self._urgent.set()  # after the request is queued, so that a step that stops for it finds it

    def abort(self, run_id: str, error: HeadraceError | None = None) -> None:
        self._inbox.put(Abort(run_id, error))

    def take(self) -> list[EngineOutput]:
        """Return all outputs since the last call, in order."""
        outputs: list[EngineOutput] = []
        while True:
            try:
                outputs += self._outbox.get_nowait()
            except queue.Empty:
                return outputs

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                commands = self._next_commands()
                self._steps += 1
                self.step = Step(self._steps, time.monotonic())
                outputs = self._run_commands(commands)
                began = time.perf_counter()
                stepping = self._engine.has_work()
                if stepping:
                    outputs += self._engine.step()
                self.stats = self._engine.stats()
                self.step = None
                if stepping and self.on_step is not None:
                    self.on_step(time.perf_counter() - began, self.stats)
                if outputs:
                    self._put(outputs)
        except Exception as error:  # ends the thread; the worker raises it and stops
            log.exception("engine_failed")
            self.step = None
            self.failure = error
            self._notify()

    def _command_timeout(self) -> float | None:
        """Return how many seconds to wait for a command before the next step; None (no limit) without work."""
        if not self._engine.has_work():
            return None
        return BATCH_WAIT_POLL_S if self.stats.waiting and not self.stats.running else 0

    def _put(self, outputs: list[EngineOutput]) -> None:
        while not self._stopping.is_set():
            try:
                self._outbox.put(outputs, timeout=STOP_CHECK_INTERVAL_S)
            except queue.Full:
                continue
            self._notify()
            return

    def _next_commands(self) -> list[EngineRequest | Abort | Wake]:
        """Return the queued commands, waiting for one if there is no work."""
        commands: list[EngineRequest | Abort | Wake] = []
        self._urgent.clear()
        timeout = self._command_timeout()
        while True:
            try:
                commands.append(self._inbox.get(block=timeout != 0, timeout=timeout))
            except queue.Empty:
                return commands
            timeout = 0

    def _run_commands(self, commands: list[EngineRequest | Abort | Wake]) -> list[EngineOutput]:
        """Run commands in order. Return the outputs of refused requests."""
        refused: list[EngineOutput] = []
        for command in commands:
            if isinstance(command, Abort):
                if self._engine.abort(command.run_id) and command.error is not None:
                    refused.append(EngineOutput(command.run_id, finished=True, error=command.error))
            elif isinstance(command, EngineRequest):
                refused += self._add(command)
        return refused

    def _add(self, request: EngineRequest) -> list[EngineOutput]:
        """Add a request to the engine. Return the final output of one that it refuses or that makes it fail."""
        try:
            with Stage("admission to the engine", run_id=request.id):
                self._engine.add(request)
        except HeadraceError as error:
            if isinstance(error, EngineFailed):
                self._engine.abort(request.id)  # it may have been added in part
            return [EngineOutput(request.id, finished=True, error=error)]
        return []
