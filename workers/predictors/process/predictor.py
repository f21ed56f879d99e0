"""Instances of a model, each in a process of its own that is replaced when it ends.

This is a `PredictorModule`; the process uses that of the model's framework.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import structlog

from shared.errors import ConfigError, HeadraceError, Unavailable
from shared.repository.spec import ModelSpec
from workers.predictors.frameworks import parameters
from workers.predictors.interface import Arrays, Execution, PredictorLost
from workers.predictors.process.child_process import ChildProcess, ModelFailed, ProcessLost
from workers.predictors.process.messages import Ended, Execute, Message, Proceed, Start, Started

START_TIMEOUT_S = 600.0  # to import a framework and load a model
EXECUTION_TIMEOUT_S = 300.0  # of one execution, unless the parameter `execution_timeout` says otherwise
REPLACEMENT_WAIT_S = 60.0  # of a request while the process is replaced
FIRST_PAUSE_S = 1.0  # before a process is replaced that has executed nothing; doubled each time
MAX_PAUSE_S = 60.0

log = structlog.get_logger(__name__)


def complete(spec: ModelSpec, folder: Path) -> ModelSpec:
    launch = Launch(spec, folder, None)
    child = launch.process()
    try:
        return launch.start(child, "complete").spec
    finally:
        child.close()


def load(spec: ModelSpec, folder: Path, *, threads: int | None) -> ProcessPredictor:
    predictor = ProcessPredictor(Launch(spec, folder, threads))
    predictor.start()
    return predictor


class Launch:
    """Starts processes of one model. Raises ConfigError if its parameters are invalid."""

    def __init__(self, spec: ModelSpec, folder: Path, threads: int | None) -> None:
        self.spec = spec
        self.timeout_s = parameters.seconds(spec, "execution_timeout", EXECUTION_TIMEOUT_S)
        self._folder = folder
        self._threads = threads
        self._memory_limit = parameters.memory(spec, "memory_limit")
        self._interpreter = spec.parameters.get("python", sys.executable)
        if "EXECUTION_ENV_PATH" in spec.parameters:
            raise ConfigError(
                f"model {spec.name}: EXECUTION_ENV_PATH is not supported; unpack the environment, and give "
                "the path of its interpreter in the parameter python",
                param="EXECUTION_ENV_PATH",
            )

    def process(self) -> ChildProcess:
        """Start a process. Raises ConfigError."""
        try:
            return ChildProcess(self.spec.name, self._interpreter, self._threads)
        except OSError as error:
            raise ConfigError(
                f"model {self.spec.name}: {self._interpreter} cannot be executed: {error.strerror}", param="python"
            ) from error

    def start(self, child: ChildProcess, goal: Literal["load", "complete"]) -> Started:
        """Let a process load the model or complete its description. Raises ConfigError."""
        message = Start(
            goal=goal,
            spec=self.spec,
            folder=str(self._folder),
            threads=self._threads,
            memory_limit=self._memory_limit,
        )
        place = f"model {self.spec.name}: version {self._folder.name} cannot be loaded"
        try:
            started, _ = child.ask(message, {}, START_TIMEOUT_S)
        except ModelFailed as error:
            raise ConfigError(f"{place}: {error}; the worker's log has the traceback") from error
        except ProcessLost as error:
            raise ConfigError(f"{place}: its process {error}") from error
        assert isinstance(started, Started)
        return started


class ProcessPredictor:
    """An instance in a process of its own.

    One thread starts the processes and waits for their ends, for Linux ends a process with the thread that started
    it.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._name = launch.spec.name
        self._changed = threading.Condition()
        self._running: ChildProcess | None = None
        self._ready: ChildProcess | None = None
        self._failure: HeadraceError | None = None  # of the last start
        self._closed = False
        self._idle_lives = 0  # in a row, of processes that executed nothing
        self._thread = threading.Thread(target=self._supervise, name=f"predictor {self._name}", daemon=True)
        self.memory_bytes = 0

    def start(self) -> None:
        """Start the first process. Raises ConfigError if it cannot load the model."""
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._failure)
            if self._failure is None:
                return
        self.close()
        raise self._failure

    def predict(self, call: Execution) -> Arrays:
        message = Execute(outputs=call.outputs, parameters=dict(call.parameters), stream=False)
        _, outputs = self._ask(self._wait_ready(), message, call.inputs)
        return outputs

    def stream(self, call: Execution) -> Iterator[Arrays]:
        child = self._wait_ready()
        message: Message = Execute(outputs=call.outputs, parameters=dict(call.parameters), stream=True)
        arrays = call.inputs
        while True:
            answer, outputs = self._ask(child, message, arrays)
            if isinstance(answer, Ended):
                return
            try:
                yield outputs
            except GeneratorExit:
                with suppress(HeadraceError, ModelFailed, PredictorLost):
                    self._ask(child, Proceed(more=False), {})
                raise
            message, arrays = Proceed(more=True), {}

    def close(self) -> None:
        with self._changed:
            self._closed = True
            running, ready = self._running, self._ready
            self._changed.notify_all()
        if ready is not None:
            ready.close()
        elif running is not None:  # it loads, or ends
            running.kill()
        self._thread.join()

    def _ask(self, child: ChildProcess, message: Message, arrays: Arrays) -> tuple[Message, Arrays]:
        try:
            answer = child.ask(message, arrays, self._launch.timeout_s)
        except ProcessLost as error:
            self._withdraw(child)
            raise PredictorLost(f"its process {error}") from error
        self._idle_lives = 0
        return answer

    def _wait_ready(self) -> ChildProcess:
        """Return the process, after its replacement if it has ended. Raises Unavailable."""
        with self._changed:
            if self._changed.wait_for(lambda: self._ready or self._closed, REPLACEMENT_WAIT_S) and self._ready:
                return self._ready
            reason = f": {self._failure.message}" if self._failure else ""
            raise Unavailable(f"the process of model {self._name} has ended and is not yet replaced{reason}")

    def _withdraw(self, child: ChildProcess) -> None:
        with self._changed:
            if self._ready is child:
                self._ready = None

    def _supervise(self) -> None:
        while self._live_once():
            pause = min(FIRST_PAUSE_S * 2 ** (self._idle_lives - 1), MAX_PAUSE_S) if self._idle_lives else 0
            self._idle_lives += 1
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, pause):
                    return

    def _live_once(self) -> bool:
        """Start a process and wait for its end. Return whether to start another one."""
        try:
            child = self._launch.process()
        except HeadraceError as error:
            return self._not_started(error)
        with self._changed:
            if self._closed:
                child.kill()
            self._running = child
        try:
            started = self._launch.start(child, "load")
        except HeadraceError as error:
            child.close()
            return self._not_started(error)
        with self._changed:
            self._ready, self._failure, self.memory_bytes = child, None, started.memory_bytes
            self._changed.notify_all()
        child.wait()
        self._withdraw(child)
        if not self._closed:
            log.warning("predictor_process_ended", model=self._name)
        return not self._closed

    def _not_started(self, error: HeadraceError) -> bool:
        if not self._closed:
            log.warning("predictor_not_loaded", model=self._name, error=error.message)
        with self._changed:
            self._failure = error
            self._changed.notify_all()
        return self.memory_bytes > 0 and not self._closed
