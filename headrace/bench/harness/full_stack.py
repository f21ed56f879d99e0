"""Full stack under measurement: `headrace up` with a fresh data folder, and the CPU and memory of its processes."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from headrace.bench.harness.server import stop
from headrace.bench.harness.subprocess_run import ROOT
from headrace.launcher.up import READY_TIMEOUT_S
from shared.errors import HeadraceError
from shared.models.model_store import ModelRepository
from shared.runtime.sockets import free_port
from shared.settings import load

START_MARGIN_S = 30.0  # in addition to the time after which `headrace up` gives up, which then says why


@dataclass(frozen=True)
class FullStack:
    """Running Headrace: its address, and the process id of the launcher."""

    url: str
    supervisor: int

    def process(self, role: str) -> psutil.Process:
        """Return the process of a role, api or worker."""
        for child in psutil.Process(self.supervisor).children():
            if role in child.cmdline():
                return child
        raise HeadraceError(f"there is no {role} process")

    def rss_mib(self, role: str) -> float:
        rss: int = self.process(role).memory_info().rss
        return rss / 2**20

    def cpu_seconds(self, role: str) -> float:
        """Return the CPU time of a role's process so far, in user and system mode."""
        return cpu_seconds(self.process(role))


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of all threads of a process so far, in user and system mode.

    It is read from the process's CPU clock (clock_getcpuclockid(3)), since /proc counts in hundredths of a second.
    """
    return time.clock_gettime(~process.pid << 3 | 2)


@contextlib.contextmanager
def full_stack(
    model: str | None,
    *options: str,
    settings: Mapping[str, object] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[FullStack]:
    """Run `headrace up` until the body ends, and yield it once it is ready.

    A worker in another environment imports this repository too.

    Args:
        settings: of Headrace, by their names in the settings file.
        variables: further variables of its environment.
    """
    port = free_port("127.0.0.1")
    environment = {
        "PYTHONPATH": str(ROOT),
        "HEADRACE_LOG_LEVEL": "warning",
        **{f"HEADRACE_{name.upper()}": str(value) for name, value in (settings or {}).items()},
        **(variables or {}),
    }
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        command = [sys.executable, "-m", "headrace", "up", "--port", str(port)]
        if model is not None:
            command += ["--model", model]
        log = Path(folder) / "up.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--data-dir", folder, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
            )
        try:
            _await_ready(process, log)
            yield FullStack(f"http://127.0.0.1:{port}", process.pid)
        finally:
            stop(process)


def _await_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S + START_MARGIN_S
    while time.monotonic() < deadline and process.poll() is None:
        if re.search(rb"^ready: ", log.read_bytes(), re.MULTILINE):
            return
        time.sleep(0.1)
    raise HeadraceError(f"headrace up did not become ready: {log.read_text()[-500:]}")


def served_name(model: str) -> str:
    return ModelRepository(load({"model": model}).settings).served_name
