"""Process of a rank other than 0, as rank 0 sees it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

from workers.engine.parallel.messages import Channel

ROOT = Path(__file__).parents[3]  # the folder of Headrace's packages
LOAD_TIMEOUT_S = 900.0  # for a rank to load its weights


class Loss:
    """The first end of a rank, if any has ended.

    Attributes:
        known: set once `reason` is.
        wake: called then, in another thread.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.known = threading.Event()
        self.wake: Callable[[], None] = lambda: None

    def report(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            self.known.set()
            self.wake()


class RankProcess:
    """Running process of a rank. It ends when this one ends, or closes its channel.

    A thread starts it and waits for its end, since Linux ends a child with the thread that started it. The thread
    keeps no reference to the engine.
    """

    def __init__(self, rank: int, loss: Loss) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours, LOAD_TIMEOUT_S)
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        self._started = threading.Event()
        threading.Thread(
            target=self._run, args=(rank, theirs, weakref.ref(loss)), name=f"rank-{rank}", daemon=True
        ).start()

    def check_started(self) -> None:
        """Raise OSError if the process could not be started."""
        self._started.wait()
        if self._error is not None:
            raise self._error

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def end(self) -> None:
        """End the process at once; it keeps nothing that another process needs."""
        self._started.wait()
        if self._process is not None:
            self._process.kill()
        self.channel.close()

    def _run(self, rank: int, theirs: socket.socket, loss: weakref.ref[Loss]) -> None:
        with theirs:
            try:
                self._process = process = _start(theirs)
            except OSError as error:
                self._error = error
                return
            finally:
                self._started.set()
        status = process.wait()
        if (found := loss()) is not None:
            found.report(f"rank {rank} (process {process.pid}) {_describe(status)}")


def _start(connection: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "workers.engine.parallel.rank"),
            *(str(connection.fileno()), str(os.getpid())),
        ],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        pass_fds=(connection.fileno(),),
    )


def _environment() -> Mapping[str, str]:
    """Return this process' environment without Headrace's settings, which have secrets."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {"GOMP_SPINCOUNT": "2000", **kept, "PYTHONPATH": os.pathsep.join(paths)}  # as in openmp_env.py


def _describe(status: int) -> str:
    if status >= 0:
        return f"exited with the status {status}"
    return f"was ended by {signal.Signals(-status).name}"
