"""Sandbox that compiles a grammar on trial in a separate process, to refuse one that takes too much CPU or memory.

A compilation cannot be stopped, and some grammars of a few characters take gigabytes and never end. So each is
first compiled by a child of a small process that has the compiler ready; the system kills the child at its limits.
Only a grammar that stays within them is then compiled in the engine's process: transferring a compiled grammar
costs more than compiling it again.

The limit is on CPU time, so that a loaded machine accepts the same grammars as an idle one. Each child has its own
parent, which waits for it and reports how it ended. A child that takes longer than `TRIAL_TIMEOUT_S` without using
up its CPU time hangs: it is killed, and the error is blamed on the compiler, not on the request.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

import msgspec
import xgrammar

from shared.errors import EngineFailed, HeadraceError, InvalidRequest
from shared.protocol import ErrorInfo, encode
from workers.engine.grammar.xgrammar_adapter import (
    XGRAMMAR_ERRORS,
    check_satisfiable,
    make_grammar,
    to_invalid_request,
)
from workers.engine.interface import ConstraintSpec
from workers.engine.text.tool_format import ToolFormat

MAX_CPU_S = 4  # CPU time of one trial
MAX_MEMORY_BYTES = 768 * 2**20  # memory of one trial, on top of the process's own
TRIAL_TIMEOUT_S = 120.0  # wall time of one trial: enough for 4 s of CPU time at a thirtieth of a core
START_TIMEOUT_S = 300.0  # wall time until the process is ready; it loads torch
REPORT_TIMEOUT_S = 30.0  # wall time until a killed trial is reported
STDOUT = 1
COMPILER_BROKE = EngineFailed("the grammar compiler failed")
COMPILER_HUNG = EngineFailed("the grammar compiler did not answer")


class Trial(msgspec.Struct, frozen=True):
    """Request to compile a grammar within limits."""

    number: int
    spec: ConstraintSpec
    tool_format: ToolFormat
    max_cpu_s: int
    max_bytes: int
    timeout_s: float


class Outcome(msgspec.Struct, frozen=True):
    """Result of the trial with the same number."""

    number: int
    error: ErrorInfo | None = None


def too_complex(param: str) -> InvalidRequest:
    """Return the error for a grammar that exceeds the limits."""
    return InvalidRequest(
        f"the grammar is too complex: it takes more than {MAX_CPU_S} s of CPU time or {MAX_MEMORY_BYTES >> 20} MiB "
        "to compile",
        param=param,
    )


class CompileSandbox:
    """Sandbox for the grammars of one model; may be used from many threads. Its process starts at first use.

    Args:
        info: the model's tokenizer.
    """

    def __init__(self, info: xgrammar.TokenizerInfo) -> None:
        self._info = info
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._running: _SandboxProcess | None = None

    def check(self, spec: ConstraintSpec, tool_format: ToolFormat) -> None:
        """Raise InvalidRequest if the grammar does not compile within the limits, EngineFailed for no answer."""
        trial = Trial(next(self._numbers), spec, tool_format, MAX_CPU_S, MAX_MEMORY_BYTES, TRIAL_TIMEOUT_S)
        process = self._process()
        try:
            process.ready.result(START_TIMEOUT_S)
            error = process.submit(trial).result(TRIAL_TIMEOUT_S + REPORT_TIMEOUT_S)
        except TimeoutError:
            raise COMPILER_HUNG from None
        if error is not None:
            raise error.to_error()

    def _process(self) -> _SandboxProcess:
        with self._lock:
            if self._running is None or self._running.ended:
                self._running = _SandboxProcess(self._info)
            return self._running


class _SandboxProcess:
    """Running sandbox process and the trials that wait for its answers."""

    def __init__(self, info: xgrammar.TokenizerInfo) -> None:
        command = [sys.executable, "-m", "workers.engine.grammar.compile_sandbox"]
        # its own messages quote the grammar
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        weakref.finalize(self, _kill, self._process)
        self.ready: Future[None] = Future()
        self._waiting: dict[int, Future[ErrorInfo | None]] = {}
        self._lock = threading.Lock()
        assert self._process.stdout is not None
        listening = (self._process.stdout, self.ready, self._waiting)
        threading.Thread(target=_listen, args=listening, name="compile-sandbox", daemon=True).start()
        self._send(info.serialize_json().encode())

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def submit(self, trial: Trial) -> Future[ErrorInfo | None]:
        outcome = self._waiting[trial.number] = Future()
        outcome.add_done_callback(lambda _: self._waiting.pop(trial.number, None))
        self._send(encode(trial))
        return outcome

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            with self._lock:
                self._process.stdin.write(line + b"\n")
                self._process.stdin.flush()
        except OSError:
            raise COMPILER_BROKE from None


def _listen(output: IO[bytes], ready: Future[None], waiting: dict[int, Future[ErrorInfo | None]]) -> None:
    """Pass the outcomes that the process reports to the waiting trials, until it ends."""
    if output.readline():
        ready.set_result(None)
    else:
        ready.set_exception(COMPILER_BROKE)
    for line in output:
        outcome = msgspec.json.decode(line, type=Outcome)
        if (future := waiting.get(outcome.number)) is not None:
            future.set_result(outcome.error)
    for future in list(waiting.values()):
        future.set_exception(COMPILER_BROKE)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


# Code that runs in the sandbox process.


def serve() -> None:
    """Read a tokenizer, then trials, one per line, until the input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children report their outcomes; none is waited for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C: the parent ends this process
    info = xgrammar.TokenizerInfo.deserialize_json(sys.stdin.buffer.readline().decode())
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    os.write(STDOUT, b"ready\n")
    for line in sys.stdin.buffer:
        trial = msgspec.json.decode(line, type=Trial)
        if os.fork() == 0:
            _run_and_exit(partial(_watch, partial(_attempt, compiler, info, trial), trial))


def _run_and_exit(work: Callable[[], None]) -> NoReturn:
    """Run `work` and exit this forked process, with status 0 if it succeeded."""
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def _watch(attempt: Callable[[], None], trial: Trial) -> None:
    """Make the attempt in a child, and report if the child is killed by its limits or hangs."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    child = os.fork()
    if child == 0:
        _run_and_exit(attempt)
    hung = not _ends(child, trial.timeout_s)
    if hung:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status != 0:
        _report(trial, COMPILER_HUNG if hung else too_complex(trial.spec.param))


def _ends(child: int, timeout_s: float) -> bool:
    """Return whether the child ends in time. A SIGCHLD alone does not say so: the child may have been stopped."""
    deadline = time.monotonic() + timeout_s
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        left = deadline - time.monotonic()
        if left <= 0 or signal.sigtimedwait([signal.SIGCHLD], left) is None:
            return False
    return True


def _attempt(compiler: xgrammar.GrammarCompiler, info: xgrammar.TokenizerInfo, trial: Trial) -> None:
    """Compile one grammar and report the outcome; the system kills this process at the limits."""
    resource.setrlimit(resource.RLIMIT_CPU, (trial.max_cpu_s, trial.max_cpu_s))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + trial.max_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    error: HeadraceError | None = None
    spec = trial.spec
    try:
        compiled = compiler.compile_grammar(make_grammar(spec.structured, spec.tools, trial.tool_format))
        check_satisfiable(compiled, info.vocab_size, ends_by_token=bool(info.stop_token_ids))
    except InvalidRequest as refusal:
        error = refusal
    except MemoryError:
        error = too_complex(spec.param)
    except XGRAMMAR_ERRORS as failure:
        out_of_memory = "bad_alloc" in str(failure)
        error = too_complex(spec.param) if out_of_memory else to_invalid_request(failure, spec.param)
    _report(trial, error)


def _report(trial: Trial, error: HeadraceError | None) -> None:
    outcome = Outcome(trial.number, None if error is None else ErrorInfo.from_error(error))
    os.write(STDOUT, encode(outcome) + b"\n")  # short enough to be written atomically


if __name__ == "__main__":
    serve()
