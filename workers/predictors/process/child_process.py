"""One life of the process of a predictor, as the worker sees it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import structlog

from shared.error_codes import error_classes
from shared.errors import EngineFailed, HeadraceError
from workers.predictors.interface import Array, Arrays
from workers.predictors.process.frames import FrameSocket, InvalidFrame
from workers.predictors.process.messages import Failed, Message

ROOT = Path(__file__).parents[3]  # the folder of Headrace's packages
MAX_LINE_BYTES = 4096  # of the process' output, in one entry of the log
CLOSING_S = 10.0  # for the model to clean up
OUTPUT_S = 1.0  # for the rest of the output; a process that the model started may keep the pipe open

log = structlog.get_logger(__name__)


class ProcessLost(Exception):
    """The process ended, or was ended; the message is a clause that says why."""


class ModelFailed(Exception):
    """The model raised an exception of its own, whose type the message names."""


class ChildProcess:
    """A running process.

    Args:
        model: for the log.
        interpreter: path of Python, which may belong to another environment.
        threads: for the libraries of the process.
    """

    def __init__(self, model: str, interpreter: str, threads: int | None) -> None:
        self._process, connection = _start(interpreter, threads)
        self._frames = FrameSocket(connection)
        self._asking = threading.Lock()
        assert self._process.stdout is not None
        self._output = threading.Thread(target=_log_output, args=(model, self._process.stdout), daemon=True)
        self._output.start()

    def ask(self, message: Message, arrays: Arrays, timeout_s: float) -> tuple[Message, dict[str, Array]]:
        """Return the answer of the process.

        Raises:
            ProcessLost: it ended before it answered, or was ended since it did not answer in time.
            ModelFailed: the model raised an exception.
            HeadraceError: the model refused the request.
        """
        with self._asking:
            return self._ask(message, arrays, timeout_s)

    def _ask(self, message: Message, arrays: Arrays, timeout_s: float) -> tuple[Message, dict[str, Array]]:
        deadline = time.monotonic() + timeout_s

        def remaining() -> float:
            return max(deadline - time.monotonic(), 0.001)

        try:
            self._frames.send(message, arrays, remaining)
            answer, outputs = self._frames.receive(remaining)
        except TimeoutError as error:
            self.kill()
            raise ProcessLost(f"did not answer within {timeout_s:g} s, and was ended") from error
        except InvalidFrame as error:
            self.kill()
            raise ProcessLost(f"sent an invalid answer, and was ended: {error}") from error
        except (EOFError, OSError) as error:
            raise ProcessLost(self._end()) from error
        if isinstance(answer, Failed):
            self._raise(answer)
        return answer, outputs

    def wait(self) -> None:
        """Wait until the process has ended."""
        self._process.wait()
        self._frames.shut_down()  # a process that it started may keep the other end open
        with self._asking:
            self._frames.close()

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Let the model clean up, and end the process."""
        self._frames.close()
        try:
            self._process.wait(CLOSING_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self.wait()
        self._output.join(OUTPUT_S)

    def _raise(self, failed: Failed) -> None:
        if failed.out_of_memory:
            self._process.wait()
            raise ProcessLost("ran out of memory")
        if not failed.code:
            raise ModelFailed(failed.message)
        error_class: type[HeadraceError] = error_classes().get(failed.code, EngineFailed)
        raise error_class(failed.message, param=failed.param)

    def _end(self) -> str:
        """Return why the process ended. It closed its socket."""
        try:
            status = self._process.wait(CLOSING_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return "closed its connection, and was ended"
        if status >= 0:
            return f"exited with the status {status}"
        return f"was ended by {signal.Signals(-status).name}"


def _start(interpreter: str, threads: int | None) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Return a new process and the worker's end of its socket. Raises OSError."""
    ours, theirs = socket.socketpair()
    arguments = (str(theirs.fileno()), str(os.getpid()))
    with theirs:
        try:
            process = subprocess.Popen(
                [interpreter, "-P", "-m", "workers.predictors.process.child", *arguments],
                env=_environment(threads),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
            )
        except OSError:
            ours.close()
            raise
    return process, ours


def _environment(threads: int | None) -> Mapping[str, str]:
    """Return the worker's environment without Headrace's settings, which have secrets."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    if threads is not None:
        kept["OMP_NUM_THREADS"] = str(threads)
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _log_output(model: str, output: IO[bytes]) -> None:
    with output:
        while line := output.readline(MAX_LINE_BYTES):
            log.info("predictor_output", model=model, line=line.decode(errors="replace").rstrip())
