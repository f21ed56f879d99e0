"""Full installation under test, started with `headrace up` as a user does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil

from headrace.cli.main import app
from headrace.launcher.up import claim_port
from tests.support.typer_internals import CliRunner
from tests.support.waiting import LIMIT_S

LEASE_S = 3  # the default, so that a worker that shares the cores does not lose its leases
OTHER_PYTHON = str(Path(sys.executable).with_name("python3"))  # another name of this interpreter
TWO_HEARTBEATS_S = 1.2 * LEASE_S * 2 / 3


class Launched:
    """`headrace up` under test: the lines of its output, and its processes by role."""

    def __init__(self, data_dir: Path, *options: str, **settings: object) -> None:
        self._reserved = claim_port("127.0.0.1", 0)
        self.port: int = self._reserved.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.data_dir = data_dir
        self.lines: list[str] = []
        given = {f"HEADRACE_{name.upper()}": str(value) for name, value in settings.items() if value is not None}
        command = [sys.executable, "-m", "headrace", "up", "--port", str(self.port), "--data-dir", str(data_dir)]
        self.process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HEADRACE_LEASE": str(LEASE_S), "HEADRACE_GRACE": "5", **given},
        )
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def await_line(self, pattern: str, count: int = 1, limit: float = LIMIT_S) -> None:
        """Wait at most `limit` seconds until `count` lines match. Fails if the launcher ends."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: sum(bool(re.search(pattern, line)) for line in self.lines) >= count or not self.running,
                limit,
            )
        assert found and self.running, self.lines

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def child(self, role: str) -> psutil.Process:
        for child in psutil.Process(self.process.pid).children():
            if role in " ".join(child.cmdline()):
                return child
        raise AssertionError(f"no {role}")

    def kill(self, role: str) -> None:
        child = self.child(role)
        child.send_signal(signal.SIGKILL)
        self.await_line(rf"(?i){role}.* died")

    def busy_worker(self) -> int:
        """Wait for a worker that runs a request, and return its process id, from its name in /ready."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            for worker in httpx.get(f"{self.url}/ready", timeout=LIMIT_S).json()["workers"]:
                if worker["running"]:
                    return int(worker["id"].split("-")[-2])
            time.sleep(0.02)
        raise AssertionError("no worker runs a request")

    def await_ready(self, limit_s: float = LIMIT_S) -> None:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/ready", timeout=LIMIT_S).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("not ready")

    def await_idle(self) -> None:
        """Wait until every worker reports no used KV block, for longer than a heartbeat."""
        deadline, since = time.monotonic() + LIMIT_S, None
        while since is None or time.monotonic() - since < TWO_HEARTBEATS_S:
            found = httpx.get(f"{self.url}/ready", timeout=LIMIT_S).json()
            held = [worker["blocks_used"] for worker in found["workers"]]
            since = None if any(held) else since or time.monotonic()
            assert time.monotonic() < deadline, f"KV blocks are still in use: {held}"
            time.sleep(0.1)

    def stop(self) -> int:
        """Send SIGINT, wait until all processes have ended, and return the exit status."""
        assert self.process.stderr is not None
        if self.process.stderr.closed:
            return self.process.wait()
        self._reserved.close()
        children = psutil.Process(self.process.pid).children(recursive=True) if self.running else []
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(LIMIT_S)
        self._reader.join()
        self.process.stderr.close()
        assert not psutil.wait_procs(children, timeout=LIMIT_S)[1]
        return status


def new_key(folder: Path, *words: str) -> str:
    """Create an API key of the installation with its data in `folder`."""
    made = CliRunner().invoke(app, ["keys", "create", "--data-dir", str(folder), "--json", *words])
    assert made.exit_code == 0, made.output
    key: str = json.loads(made.stdout)["key"]
    return key
