"""Supervisor of child processes: it kills silent ones, restarts dead ones, and stops all in order."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from headrace.launcher.pulse import Pulse
from shared.errors import ConfigError, HeadraceError
from shared.models.worker_registry import UNHEALTHY_STATUS
from shared.runtime.processes import die_with_parent

FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 30.0
MAX_DOUBLINGS = 20  # far beyond MAX_PAUSE_S; bounds the exponent after many deaths
HEALTHY_AFTER_S = 60.0  # a process that ran this long starts again with the first pause
MAX_EARLY_DEATHS = 6  # in a row, before the installation was ready for the first time
ERROR_PREFIX = "error: "
REFUSED_SETTINGS_STATUS = 2  # exit status of a process that refuses its settings; a restart cannot help
MAX_LOG_BYTES = 10 * 2**20
MAX_LINE_CHARS = 500  # of a log's last line in a message: a model may print whatever it likes


class ChildFailed(HeadraceError):
    """A child died repeatedly before the installation was ready for the first time."""

    code = "child_failed"


@dataclass
class Backoff:
    """Pauses before the restarts of one process.

    They double up to MAX_PAUSE_S, and start over once the process has run for HEALTHY_AFTER_S. All times are
    seconds of one clock.
    """

    deaths: int = 0
    due: float = 0.0

    def died(self, started_at: float, now: float) -> float:
        """Count a death, and return the pause until the next start, which is at `due`."""
        self.deaths = 1 if now - started_at >= HEALTHY_AFTER_S else self.deaths + 1
        doublings = min(self.deaths - 1, MAX_DOUBLINGS)
        pause = min(FIRST_PAUSE_S * 2.0**doublings, MAX_PAUSE_S)
        self.due = now + pause
        return pause


@dataclass
class Child:
    """One supervised process.

    Attributes:
        environment: added to the environment of this process. It carries settings and secrets, which must not be on
            the command line.
        log: file for the output, renamed when it exceeds MAX_LOG_BYTES; None for the terminal.
        pulse: receives its signs of life; None for a process that sends none.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path | None
    pulse: Pulse | None = None
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)

    def start(self) -> None:
        """Start the process. Raises OSError."""
        output = self._output()
        if self.pulse is not None:
            self.pulse.restart()
        try:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment, **(self.pulse.environment if self.pulse else {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches the supervisor, which stops its children in order
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  a single prctl call, no locks
            )
        finally:
            if output is not None:
                output.close()

    def _output(self) -> IO[bytes] | None:
        if self.log is None:
            return None
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        return self.log.open("ab")

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill_if_silent(self) -> bool:
        """Kill the running process if it no longer responds. Return True if it was killed."""
        if self.pulse is None or self.process is None or not self.pulse.is_silent():
            return False
        self.pulse.restart()
        self.process.kill()  # it ends at once, unless the kernel waits for a device
        return True

    def last_line(self, prefix: str = "") -> str:
        """Return the last line of the log that starts with `prefix`, cut to what fits into a message."""
        if self.log is None or not self.log.exists():
            return ""
        lines = self.log.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
        return next((line[:MAX_LINE_CHARS] for line in reversed(lines) if line.startswith(prefix)), "")

    def last_words(self, status: int) -> str:
        """Return what the log says of the cause of a death with this exit status; empty if it says nothing.

        A process that refuses its settings says why in a line of its own, after which a thread may still log.
        """
        refusal = self.last_line(ERROR_PREFIX) if status == REFUSED_SETTINGS_STATUS else ""
        return (refusal or self.last_line()).removeprefix(ERROR_PREFIX)


@dataclass(frozen=True)
class Death:
    """Death of a child: the process' id and exit status, negative for a signal; the seconds until its restart."""

    child: Child
    pid: int
    status: int
    pause: float


class Supervisor:
    """Starts child processes, and restarts dead ones after growing pauses.

    Until `settle` is called, a child that refuses its settings or dies repeatedly ends the launcher with an error.
    After that, no death does: an installation that has worked once is worth waiting for.

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
        """Start a child and supervise it. Raises OSError."""
        self._start(child)
        self.children.append(child)

    def settle(self) -> None:
        """Treat no death as an error from now on."""
        self._settled = True

    def check(self) -> None:
        """Check all children once: kill those that no longer respond, and restart dead ones.

        Raises ConfigError and ChildFailed before `settle`.
        """
        for child in self.children:
            if child.running:
                if child.kill_if_silent():
                    self._report(f"{child.name} does not respond, and is killed")
                continue
            if child.process is not None:
                self._handle_death(child)
            if self._clock() >= child.backoff.due:
                self._restart(child)

    def _start(self, child: Child) -> None:
        child.start()
        child.started_at = self._clock()

    def _restart(self, child: Child) -> None:
        try:
            self._start(child)
        except OSError as error:  # no memory, process or disk space: may pass, like the cause of a death
            now = self._clock()
            pause = child.backoff.died(now, now)
            self._report(f"{child.name} cannot be started ({error.strerror}), next attempt in {pause:.1f} s")

    def _handle_death(self, child: Child) -> None:
        assert child.process is not None
        pid, status = child.process.pid, child.process.returncode
        child.process = None
        pause = child.backoff.died(child.started_at, self._clock())
        line = child.last_words(status)
        words = f": {line}" if line else ""
        if not self._settled and status == REFUSED_SETTINGS_STATUS:
            raise ConfigError(f"{child.name} cannot start{words}")
        if not self._settled and child.backoff.deaths >= MAX_EARLY_DEATHS:
            raise ChildFailed(
                f"{child.name} died {child.backoff.deaths} times in a row ({exit_reason(status)}){words}"
            )
        self._report(f"{child.name} died ({exit_reason(status)}), restart in {pause:.1f} s{words}")
        self._on_death(Death(child, pid, status, pause))

    def stop(self, grace: float, kill_now: Callable[[], bool] = lambda: False) -> None:
        """Stop all children, last started first. Kill those left after `grace` seconds, or when `kill_now()`."""
        deadline = time.monotonic() + grace
        for child in reversed(self.children):
            if child.running and child.process is not None:
                child.process.terminate()
        for child in self.children:
            while child.running and time.monotonic() < deadline and not kill_now():
                time.sleep(0.02)
            if child.running and child.process is not None:
                child.process.kill()
                child.process.wait()
        for child in self.children:
            if child.pulse is not None:
                child.pulse.close()


def exit_reason(status: int) -> str:
    """Return a description of an exit status."""
    if status >= 0:
        return f"exit status {status}" + (", its engine hung" if status == UNHEALTHY_STATUS else "")
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
