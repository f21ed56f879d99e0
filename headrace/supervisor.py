"""Keeps a set of child processes alive, and ends them in order. It does not know what they do."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shared.errors import HeadraceError
from shared.processes import die_with_parent

BACKOFF = (0.2, 0.5, 1.0, 2.0, 5.0)
STEADY = 10.0  # seconds of life after which a death counts as a first one again
MOST_DEATHS = len(BACKOFF) + 1
LOG_BYTES = 10 * 2**20


class ChildFailed(HeadraceError):
    """A child dies again and again."""

    code = "child_failed"


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
    deaths: int = 0
    due: float = 0.0

    def start(self) -> None:
        output = self._output()
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches the supervisor, which stops its children in order
            preexec_fn=die_with_parent,  # noqa: PLW1509  a single prctl call, no locks
        )
        if output is not None:
            output.close()
        self.born = time.monotonic()

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


class Supervisor:
    """Starts children, restarts the dead with backoff, gives up on one that will not live.

    Args:
        report: told each death and restart, in a sentence.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self.children: list[Child] = []

    def add(self, child: Child) -> None:
        self.children.append(child)
        child.start()

    def check(self) -> None:
        """Look after all children once. Raises ChildFailed."""
        now = time.monotonic()
        for child in self.children:
            if child.running:
                continue
            if child.process is not None:
                self._bury(child, now)
            if now >= child.due:
                child.start()

    def _bury(self, child: Child, now: float) -> None:
        assert child.process is not None
        status = child.process.returncode
        child.process = None
        child.deaths = 1 if now - child.born > STEADY else child.deaths + 1
        words = f": {said}" if (said := child.last_words()) else ""
        if child.deaths >= MOST_DEATHS:
            raise ChildFailed(f"{child.name} died {child.deaths} times in a row (status {status}){words}")
        child.due = now + BACKOFF[child.deaths - 1]
        self._report(f"{child.name} died (status {status}), starting it again{words}")

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
