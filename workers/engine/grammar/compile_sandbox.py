"""Tries grammars in a process apart, which can be ended: one that takes too much CPU time or memory is refused.

No compilation can be stopped, and some of few characters take gigabytes and never end. So each is compiled first by
a child of a small process that has the compiler ready; the system ends the child at its bounds. Only what is done
within them is then compiled where it is used: a compiled grammar costs more to hand over than to make again.

The limit is on CPU time, so that a loaded machine accepts the same grammars as an idle one. Each child has a parent
of its own that waits for it and reports how it ended. A child that takes longer than `PATIENCE_S` without using up
its CPU time hangs: it is killed, and the error is the compiler's, not the request's.
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
from workers.engine.grammar.xgrammar_adapter import COMPLAINTS, grammar_of, probe, refusal
from workers.engine.interface import Form
from workers.engine.text.tool_format import ToolFormat

MAX_CPU_S = 4  # CPU time of one trial
MAX_BYTES = 768 * 2**20  # memory of one trial, beside what the process has
PATIENCE_S = 120.0  # wall time of one trial: 4 s of CPU time even at a thirtieth of a core
START_S = 300.0  # wall time until the process is ready: it loads torch
REPORT_S = 30.0  # wall time, after a trial has been killed, until that is reported
STDOUT = 1
BROKEN = EngineFailed("the grammar compiler broke")
HUNG = EngineFailed("the grammar compiler did not answer")


class Trial(msgspec.Struct, frozen=True):
    """A grammar to compile within bounds."""

    number: int
    form: Form
    tool_format: ToolFormat
    cpu_s: int
    bytes: int
    patience_s: float


class Outcome(msgspec.Struct, frozen=True):
    number: int
    error: ErrorInfo | None = None


def too_complex(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"the grammar takes more than {MAX_CPU_S} s of CPU time or {MAX_BYTES >> 20} MiB to compile: "
        "it is too complex",
        param=param,
    )


class Trials:
    """Of one model's grammars; may be used from many threads. Its process is started when first needed.

    Args:
        info: its tokenizer.
    """

    def __init__(self, info: xgrammar.TokenizerInfo) -> None:
        self._info = info
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def check(self, form: Form, tool_format: ToolFormat) -> None:
        """Raise InvalidRequest for what cannot be compiled within the bounds, EngineFailed for no answer."""
        trial = Trial(next(self._numbers), form, tool_format, MAX_CPU_S, MAX_BYTES, PATIENCE_S)
        running = self._started()
        try:
            running.ready.result(START_S)
            error = running.ask(trial).result(PATIENCE_S + REPORT_S)
        except TimeoutError:
            raise HUNG from None
        if error is not None:
            raise error.to_error()

    def _started(self) -> _Running:
        with self._lock:
            if self._running is None or self._running.ended:
                self._running = _Running(self._info)
            return self._running


class _Running:
    """The process, and who waits for it."""

    def __init__(self, info: xgrammar.TokenizerInfo) -> None:
        command = [sys.executable, "-m", "workers.engine.grammar.compile_sandbox"]
        # its own complaints quote what was asked
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        weakref.finalize(self, _end, self._process)
        self.ready: Future[None] = Future()
        self._waiting: dict[int, Future[ErrorInfo | None]] = {}
        self._lock = threading.Lock()
        assert self._process.stdout is not None
        listening = (self._process.stdout, self.ready, self._waiting)
        threading.Thread(target=_listen, args=listening, name="trials", daemon=True).start()
        self._say(info.serialize_json().encode())

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, trial: Trial) -> Future[ErrorInfo | None]:
        told = self._waiting[trial.number] = Future()
        told.add_done_callback(lambda _: self._waiting.pop(trial.number, None))
        self._say(encode(trial))
        return told

    def _say(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            with self._lock:
                self._process.stdin.write(line + b"\n")
                self._process.stdin.flush()
        except OSError:
            raise BROKEN from None


def _listen(said: IO[bytes], ready: Future[None], waiting: dict[int, Future[ErrorInfo | None]]) -> None:
    """Hand out what the process says, until it ends."""
    if said.readline():
        ready.set_result(None)
    else:
        ready.set_exception(BROKEN)
    for line in said:
        outcome = msgspec.json.decode(line, type=Outcome)
        if (told := waiting.get(outcome.number)) is not None:
            told.set_result(outcome.error)
    for told in list(waiting.values()):
        told.set_exception(BROKEN)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


# in the process


def serve() -> None:
    """Read a tokenizer, then trials, each a line, until there are no more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the children report by themselves
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: who started us ends us
    info = xgrammar.TokenizerInfo.deserialize_json(sys.stdin.buffer.readline().decode())
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    os.write(STDOUT, b"ready\n")
    for line in sys.stdin.buffer:
        trial = msgspec.json.decode(line, type=Trial)
        if os.fork() == 0:
            _run(partial(_watch, partial(_attempt, compiler, info, trial), trial))


def _run(work: Callable[[], None]) -> NoReturn:
    """Do `work` as all that this forked process does; its status says whether it was done."""
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def _watch(attempt: Callable[[], None], trial: Trial) -> None:
    """Make the attempt in a child, and report for one that is killed, by its limits or because it hangs."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    child = os.fork()
    if child == 0:
        _run(attempt)
    hung = not _ends(child, trial.patience_s)
    if hung:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status != 0:
        _report(trial, HUNG if hung else too_complex(trial.form.param))


def _ends(child: int, patience_s: float) -> bool:
    """Return whether the child ends in time; a SIGCHLD may also mean that it was stopped."""
    deadline = time.monotonic() + patience_s
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        left = deadline - time.monotonic()
        if left <= 0 or signal.sigtimedwait([signal.SIGCHLD], left) is None:
            return False
    return True


def _attempt(compiler: xgrammar.GrammarCompiler, info: xgrammar.TokenizerInfo, trial: Trial) -> None:
    """Compile one grammar and report; the system ends this process at the limits."""
    resource.setrlimit(resource.RLIMIT_CPU, (trial.cpu_s, trial.cpu_s))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + trial.bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    error: HeadraceError | None = None
    form = trial.form
    try:
        compiled = compiler.compile_grammar(grammar_of(form.structured, form.tools, trial.tool_format))
        probe(compiled, info.vocab_size, ends_by_token=bool(info.stop_token_ids))
    except InvalidRequest as complaint:
        error = complaint
    except MemoryError:
        error = too_complex(form.param)
    except COMPLAINTS as complaint:
        error = too_complex(form.param) if "bad_alloc" in str(complaint) else refusal(complaint, form.param)
    _report(trial, error)


def _report(trial: Trial, error: HeadraceError | None) -> None:
    outcome = Outcome(trial.number, None if error is None else ErrorInfo.from_error(error))
    os.write(STDOUT, encode(outcome) + b"\n")  # short enough to be of one piece


if __name__ == "__main__":
    serve()
