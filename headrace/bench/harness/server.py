"""Server under measurement as a child process: start, wait until healthy, stop."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

import httpx
import psutil

from shared.errors import HeadraceError

STOP_TIMEOUT_S = 60.0
LOG_TAIL_BYTES = 500  # shown when a server does not start


@contextmanager
def running_server(
    command: Sequence[str],
    url: str,
    *,
    timeout: float,
    probe: str = "/health",
    environment: Mapping[str, str] | None = None,
) -> Iterator[psutil.Process]:
    """Run a server until the body ends, and yield its main process once a GET of `probe` succeeds.

    Raises HeadraceError if the process ends or is not healthy within `timeout` seconds.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
        )
        try:
            _await_healthy(process, url + probe, timeout, log)
            yield psutil.Process(process.pid)
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, and SIGKILL after STOP_TIMEOUT_S. Not SIGINT: children of a background job ignore it."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _await_healthy(process: subprocess.Popen[bytes], url: str, timeout: float, log: IO[bytes]) -> None:
    deadline = time.monotonic() + timeout
    with httpx.Client() as http:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if http.get(url).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # the server does not listen yet
            time.sleep(0.1)
    log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
    raise HeadraceError(f"{process.args!r:.80} did not start: {log.read().decode(errors='replace')}")
