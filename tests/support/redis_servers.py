"""Redis servers with given options, Sentinels, Cluster nodes, and a proxy with faults."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import redis

from shared.backend import Backend
from shared.redis.embedded import bundled
from shared.runtime.processes import die_with_parent
from shared.runtime.sockets import free_port
from shared.settings import Settings, load
from tests.support.waiting import LIMIT_S

HOST = "127.0.0.1"


class Node:
    """One server process, configured with lines of a valkey.conf."""

    def __init__(self, folder: Path, *config: str, port: int = 0, sentinel: bool = False) -> None:
        self.port = port or free_port(HOST)
        self.folder = folder
        self.credentials: dict[str, str] = {}  # of `admin`
        self._sentinel = sentinel
        folder.mkdir(parents=True, exist_ok=True)
        own = [] if sentinel else ['save ""', "maxmemory-policy noeviction", "enable-debug-command yes"]
        self._file = folder / "server.conf"
        self._file.write_text("\n".join([f"bind {HOST}", f"port {self.port}", f"dir {folder}", *own, *config, ""]))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        binary = os.environ.get("TEST_REDIS_SERVER") or bundled()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, str(self._file), *(["--sentinel"] if self._sentinel else [])],
                stdout=log,
                stderr=log,
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  a single prctl call, no locks
            )
        until(self._listens)

    def _listens(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(1) in {b"+", b"-"}
        except OSError:
            return False

    def admin(self) -> redis.Redis:
        return redis.Redis(
            host=HOST, port=self.port, socket_timeout=LIMIT_S, decode_responses=True, **self.credentials
        )

    def call(self, *command: str | int) -> object:
        with self.admin() as client:
            return client.execute_command(*command)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Suspend the process while the body runs: the kernel accepts connections, but no answer is sent."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition on another process holds."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {LIMIT_S} s"
        time.sleep(0.02)


@contextmanager
def running(*nodes: Node) -> Iterator[None]:
    try:
        for node in nodes:
            node.start()
        yield
    finally:
        for node in nodes:
            node.kill()


def settings_for(url: str, folder: Path, **more: object) -> Settings:
    flags = {"redis_url": url, "port": 0, "data_dir": folder / "data", "model": "scripted", "lease": LIMIT_S}
    return load(flags | more).settings


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Backend]:
    backend = Backend.open(settings)
    try:
        yield backend
    finally:
        await backend.close()


class Proxy:
    """Proxy to a server. While `silent`, it drops all bytes, as a half-open peer does."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.silent = False
        self.requests, self.replies = asyncio.Event(), asyncio.Event()  # while not set, bytes are held back
        self.requests.set()
        self.replies.set()
        self.accepted = 0
        self.port = 0

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, HOST, 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            theirs_reader, theirs = await asyncio.open_connection(HOST, self._target)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pass(reader, theirs, self.requests))
                    both.create_task(self._pass(theirs_reader, writer, self.replies))
            finally:
                theirs.close()
        except* (OSError, EOFError):
            pass
        except* asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        while data := await reader.read(65536):
            await gate.wait()
            if not self.silent:
                writer.write(data)
                await writer.drain()
        raise EOFError
