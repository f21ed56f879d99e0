"""Interpreter that has imported a server's code, and forks for each start of the server.

The imports take most of the CPU time of a start. A forked process runs its command as `python -m headrace` does,
with its own environment, output and process id.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from io import BufferedWriter

from shared.runtime.processes import die_with_parent
from workers.startup.openmp_env import spin_briefly

MAX_BYTES = 2**17  # of the message that asks for a process: its arguments and its environment
STATUS_BYTES = 4


class ForkedProcess:
    """Process of a template, with the interface of `subprocess.Popen` as far as `Node` needs it.

    Args:
        handle: file descriptor of the process, which no other process can get, unlike its id.
        status: pipe that the exit status comes through.
    """

    def __init__(self, pid: int, handle: int, status: int) -> None:
        self.pid = pid
        self._handle = handle
        self._status = status
        self._returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while the process runs."""
        if self._returncode is None and select.select([self._status], [], [], 0)[0]:
            self.wait()
        return self._returncode

    def wait(self) -> int:
        if self._returncode is None:
            found = os.read(self._status, STATUS_BYTES)
            assert found, "the template of the process has ended"
            self._returncode = int.from_bytes(found, "little", signed=True)
            os.close(self._status)
            os.close(self._handle)
        return self._returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)


class ProcessTemplate:
    """Interpreter that has imported `modules`. It ends with this process, and its own processes with it."""

    def __init__(self, python: str, modules: Sequence[str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [python, "-m", __name__, str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  a single prctl call, no locks
            )

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], output: BufferedWriter
    ) -> ForkedProcess:
        """Run `headrace` with these arguments in a new process whose output goes to a file."""
        request = json.dumps([list(arguments), dict(environment)]).encode()
        assert len(request) < MAX_BYTES
        status, reported = os.pipe()
        socket.send_fds(self._control, [request], [output.fileno(), reported])
        os.close(reported)
        pid, handles, _, _ = socket.recv_fds(self._control, STATUS_BYTES, 1)
        assert pid, "the template has ended; its output says why"
        return ForkedProcess(int.from_bytes(pid, "little"), handles[0], status)

    def close(self) -> None:
        self._control.close()
        self._process.wait()


@cache
def template_of(python: str, modules: tuple[str, ...]) -> ProcessTemplate:
    """Return the one template of this process with this interpreter and these modules."""
    template = ProcessTemplate(python, modules)
    atexit.register(template.close)
    return template


class _Forks:
    """Processes of this template that run, with the pipes that report their exit status."""

    def __init__(self) -> None:
        self._pipes: dict[int, int] = {}
        signal.signal(signal.SIGCHLD, self._reap)

    def _reap(self, *_: object) -> None:
        for pid in list(self._pipes):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                pipe = self._pipes.pop(pid)
                os.write(pipe, os.waitstatus_to_exitcode(status).to_bytes(STATUS_BYTES, "little", signed=True))
                os.close(pipe)

    def fork(self, pipe: int) -> tuple[int, int]:
        """Fork, and return the id and a file descriptor of the new process; there, return zeros."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # until its pipe is known
        parent, handle = os.getpid(), 0
        if pid := os.fork():
            self._pipes[pid], handle = pipe, os.pidfd_open(pid)
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent(parent)
            for other in (*self._pipes.values(), pipe):
                os.close(other)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        return pid, handle


def _serve(control: socket.socket) -> None:
    """Fork for each request; return in the new process, set up for its command line. Exits with the client."""
    forks = _Forks()
    while True:
        request, passed, _, _ = socket.recv_fds(control, MAX_BYTES, 2)
        if not request:
            sys.exit()
        output, pipe = passed
        pid, handle = forks.fork(pipe)
        if not pid:
            control.close()
            break
        os.close(output)
        socket.send_fds(control, [pid.to_bytes(STATUS_BYTES, "little")], [handle])
        os.close(handle)
    arguments, environment = json.loads(request)
    sys.argv[1:] = arguments
    sys.orig_argv = [sys.executable, "-m", "headrace", *arguments]  # a worker that wakes executes it
    os.environ.clear()
    os.environ.update(environment)
    for standard in (sys.stdout, sys.stderr):
        os.dup2(output, standard.fileno())
    os.close(output)


if __name__ == "__main__":
    spin_briefly()  # as a worker does before it imports torch
    for module in sys.argv[2:]:
        importlib.import_module(module)
    _serve(socket.socket(fileno=int(sys.argv[1])))
    importlib.import_module("headrace.cli.main").main()
