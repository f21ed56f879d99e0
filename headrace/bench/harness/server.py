"""A server under measurement as a process of ours: started, awaited, ended. It does not know what it is asked."""

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

STOP_LIMIT = 60.0  # seconds
TOLD = 500  # bytes of the log of a server that did not start


@contextmanager
def running(
    command: Sequence[str], url: str, *, limit: float, environment: Mapping[str, str] | None = None
) -> Iterator[psutil.Process]:
    """The server's first process, from when its /health is well.

    Raises HeadraceError where it ends, or is not well within `limit` seconds.
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
            _await_well(process, url, limit, log)
            yield psutil.Process(process.pid)
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill what has not ended within STOP_LIMIT of SIGTERM; what a background job starts ignores SIGINT."""
    process.terminate()
    try:
        process.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _await_well(process: subprocess.Popen[bytes], url: str, limit: float, log: IO[bytes]) -> None:
    deadline = time.monotonic() + limit
    with httpx.Client() as http:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if http.get(f"{url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            time.sleep(0.1)
    log.seek(max(0, log.seek(0, os.SEEK_END) - TOLD))
    raise HeadraceError(f"{process.args!r:.80} did not start: {log.read().decode(errors='replace')}")
