"""Signs of life of a child process, by the protocol of systemd's watchdog (sd_watchdog_enabled(3))."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

LONGEST_CHECK_S = 0.5  # that counts between two checks, since the machine may have been suspended
MESSAGE_BYTES = 256


class Pulse:
    """Receives the messages of one child, which is expected to send them from the first READY=1 to STOPPING=1.

    Args:
        limit: seconds of silence after which the child no longer responds.
        clock: monotonic, in seconds.
    """

    def __init__(self, limit: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._folder = TemporaryDirectory(prefix="headrace-")  # of mode 0700: no other user can send messages
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(self._address)
        self._expected = False
        self._silence = 0.0
        self._checked = clock()

    @property
    def _address(self) -> str:
        return str(Path(self._folder.name) / "notify")

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the child. The launcher's own supervisor is not the child's."""
        return {"NOTIFY_SOCKET": self._address, "WATCHDOG_USEC": str(int(self._limit * 1e6)), "WATCHDOG_PID": ""}

    def restart(self) -> None:
        """Expect nothing until the next READY=1: the child is about to start."""
        while self._receive():
            pass
        self._expected = False

    def is_silent(self) -> bool:
        """Read the messages since the last check. Return True if there have been none for too long."""
        now = self._clock()
        self._silence += min(now - self._checked, LONGEST_CHECK_S)
        self._checked = now
        while lines := self._receive():
            self._silence = 0.0
            self._expected = (self._expected or b"READY=1" in lines) and b"STOPPING=1" not in lines
        return self._expected and self._silence >= self._limit

    def _receive(self) -> list[bytes]:
        """Return the lines of the next message; empty if none has arrived."""
        with suppress(BlockingIOError):
            return self._socket.recv(MESSAGE_BYTES).splitlines() or [b""]
        return []

    def close(self) -> None:
        self._socket.close()
        self._folder.cleanup()
