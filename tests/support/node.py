"""One process of the server under test: start, stop, faults, and waiting for events in its log.

The log consists of JSON lines with an `event` each.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil

from shared.runtime.processes import die_with_parent
from tests.support.process_template import ForkedProcess, template_of
from tests.support.waiting import LIMIT_S

POLL_S = 0.01  # between looks at a process or its log


class Node:
    """Process that can be started again and again.

    Args:
        python: the interpreter.
        arguments: of the command `headrace`.
        environment: added to the environment of this process.
        ready: log event by which the process reports that it is ready.
        limit: seconds that waiting for an event may take.
        imports: modules that a template of the process has imported. Without them, or with a PYTHONPATH of its
            own, the process is executed anew at each start.
    """

    def __init__(
        self,
        name: str,
        python: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        ready: str,
        log: Path,
        *,
        limit: float = LIMIT_S,
        imports: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self._python = python
        self._arguments = list(arguments)
        self.environment = environment
        self._ready = ready
        self._limit = limit
        self._imports = imports
        self._log = log
        self._read = 0  # bytes of the log that have been counted
        self._counts: Counter[str] = Counter()
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self.births = 0

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        assert not self.running, f"{self.name} is already running"
        environment = {**os.environ, **self.environment}
        with self._log.open("ab") as output:
            if self._imports and "PYTHONPATH" not in self.environment:
                self._process = template_of(self._python, self._imports).start(self._arguments, environment, output)
            else:
                self._process = subprocess.Popen(
                    [self._python, "-m", "headrace", *self._arguments],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  a single prctl call, no locks
                )
        self.births += 1

    async def start(self) -> None:
        """Start the process and wait until it is ready."""
        self.spawn()
        await self.serving()

    async def serving(self) -> None:
        await self.logged(self._ready, self.births)

    @property
    def ready(self) -> bool:
        """Return whether the process has reported that it is ready since its last start."""
        return self.running and self.count(self._ready) >= self.births

    async def logged(self, event: str, count: int = 1) -> None:
        """Wait until the log has an event `count` times."""
        deadline = time.monotonic() + self._limit
        while self.count(event) < count:
            assert self.running, f"{self.name} ended: {self.tail()}"
            assert time.monotonic() < deadline, f"{self.name} did not log {event}: {self.tail()}"
            await asyncio.sleep(POLL_S)

    def count(self, event: str) -> int:
        """Return how often the log has an event, over all runs of the process."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            *lines, _ = log.read().split(b"\n")
        for line in lines:
            self._read += len(line) + 1
            if line.startswith(b"{"):
                self._counts[json.loads(line).get("event", "")] += 1
        return self._counts[event]

    def tail(self) -> str:
        return self._log.read_bytes()[-2000:].decode(errors="replace")

    # faults

    def kill(self) -> None:
        """Kill the process, as the kernel does when memory runs out."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def pause(self) -> None:
        """Suspend the process, as a suspended machine does."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit status."""
        self._signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        assert self._process is not None
        deadline = time.monotonic() + LIMIT_S
        while (status := self._process.poll()) is None:
            assert time.monotonic() < deadline, f"{self.name} did not end: {self.tail()}"
            await asyncio.sleep(POLL_S)
        return status

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    # resource usage

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def rss(self) -> int:
        """Resident memory in bytes."""
        return psutil.Process(self.pid).memory_info().rss

    @property
    def cpu(self) -> float:
        """CPU seconds since the last start."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system
