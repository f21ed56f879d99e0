"""Keeps a set of child processes alive, and ends them in order. It does not know what they do."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from shared.errors import ConfigError, HeadraceError
from shared.runtime.processes import die_with_parent

FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 30.0
MOST_DOUBLINGS = 20  # beyond MAX_PAUSE_S by far; keeps the power small however many deaths there are
HEALTHY_S = 60.0  # after a life this long the pauses begin anew
MAX_EARLY_DEATHS = 6  # in a row, before the installation was ready for the first time
BAD_SETTINGS = 2  # exit status of a process that refused its settings: another start changes nothing
LOG_BYTES = 10 * 2**20


class ChildFailed(HeadraceError):
    """A child dies again and again before the installation was ready for the first time."""

    code = "child_failed"


@dataclass
class Backoff:
    """Pauses between the lives of one process.

    They double up to MAX_PAUSE_S, and start over after HEALTHY_S of life. Times are in seconds of one clock.
    """

    deaths: int = 0
    due: float = 0.0

    def died(self, born: float, now: float) -> float:
        """Count a death, and return the pause until the next start, which is at `due`."""
        self.deaths = 1 if now - born >= HEALTHY_S else self.deaths + 1
        doublings = min(self.deaths - 1, MOST_DOUBLINGS)
        pause = min(FIRST_PAUSE_S * 2.0**doublings, MAX_PAUSE_S)
        self.due = now + pause
        return pause


@dataclass
class Child:
    """One supervised process; its output goes to `log`, moved aside when it has grown too large.

    `environment` is added to ours: settings and secrets travel there, never on the command line.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path | None
    process: subprocess.Popen[bytes] | None = None
    born: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)

    def start(self) -> None:
        """Raises OSError."""
        output = self._output()
        try:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches the supervisor, which stops its children in order
                preexec_fn=die_with_parent,  # noqa: PLW1509  a single prctl call, no locks
            )
        finally:
            if output is not None:
                output.close()

    def _output(self) -> IO[bytes] | None:
        if self.log is None:
            return None
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        return self.log.open("ab")

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def last_words(self) -> str:
        """The last line that it wrote."""
        if self.log is None or not self.log.exists():
            return ""
        lines = self.log.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


@dataclass(frozen=True)
class Death:
    """One end of a child: its exit status, negative for a signal, and the pause in seconds until its next start."""

    child: Child
    status: int
    pause: float


class Supervisor:
    """Starts children, and restarts the dead after growing pauses.

    A child that refuses its settings, or dies again and again, ends everything with an error, but only until
    `settle` is called: what has once worked is worth waiting for.

    Args:
        report: called with a sentence about each death.
        on_death: called with each death, after the report.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        report: Callable[[str], None],
        on_death: Callable[[Death], None] = lambda death: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._on_death = on_death
        self._clock = clock
        self._settled = False
        self.children: list[Child] = []

    def add(self, child: Child) -> None:
        """Start a child, and look after it from now on. Raises OSError."""
        self._start(child)
        self.children.append(child)

    def settle(self) -> None:
        """From now on, no death is an error."""
        self._settled = True

    def check(self) -> None:
        """Look after all children once. Raises ConfigError and ChildFailed, before `settle`."""
        for child in self.children:
            if child.running:
                continue
            if child.process is not None:
                self._bury(child)
            if self._clock() >= child.backoff.due:
                self._restart(child)

    def _start(self, child: Child) -> None:
        child.start()
        child.born = self._clock()

    def _restart(self, child: Child) -> None:
        try:
            self._start(child)
        except OSError as error:  # no memory, no process, no room for its log: as likely to pass as a death
            now = self._clock()
            pause = child.backoff.died(now, now)
            self._report(f"{child.name} cannot be started ({error.strerror}), next attempt in {pause:.1f} s")

    def _bury(self, child: Child) -> None:
        assert child.process is not None
        status = child.process.returncode
        child.process = None
        pause = child.backoff.died(child.born, self._clock())
        said = child.last_words().removeprefix("error: ")
        words = f": {said}" if said else ""
        if not self._settled and status == BAD_SETTINGS:
            raise ConfigError(f"{child.name} cannot start{words}")
        if not self._settled and child.backoff.deaths >= MAX_EARLY_DEATHS:
            raise ChildFailed(f"{child.name} died {child.backoff.deaths} times in a row ({cause(status)}){words}")
        self._report(f"{child.name} died ({cause(status)}), restart in {pause:.1f} s{words}")
        self._on_death(Death(child, status, pause))

    def stop(self, grace: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """End all children, last started first, with `grace` seconds for all; kill what is left, or if `hurry`."""
        deadline = time.monotonic() + grace
        for child in reversed(self.children):
            if child.running and child.process is not None:
                child.process.terminate()
        for child in self.children:
            while child.running and time.monotonic() < deadline and not hurry():
                time.sleep(0.02)
            if child.running and child.process is not None:
                child.process.kill()
                child.process.wait()


def cause(status: int) -> str:
    """Return what an exit status means, for people."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
