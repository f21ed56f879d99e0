"""Messages to what supervises this process: `headrace up`, or systemd (sd_notify(3), sd_watchdog_enabled(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Self


class Notifier:
    """Sends datagrams to the supervisor; does nothing without one.

    Args:
        address: of its Unix socket; `@` begins an abstract name.
    """

    def __init__(self, address: str | None) -> None:
        self._address = "\0" + address[1:] if address and address[0] == "@" else address

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return the notifier of the supervisor that the environment names, if it is this process' own."""
        meant = environment.get("WATCHDOG_PID") or str(os.getpid())
        return cls(environment.get("NOTIFY_SOCKET") if meant == str(os.getpid()) else None)

    def ready(self) -> None:
        """Report that the process serves. From now on, the supervisor expects it to be `alive`."""
        self._send(b"READY=1\nWATCHDOG=1")

    def alive(self) -> None:
        self._send(b"WATCHDOG=1")

    def stopping(self) -> None:
        """Report that the process ends; the supervisor expects no further messages."""
        self._send(b"STOPPING=1")

    def _send(self, message: bytes) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
            sender.setblocking(False)
            sender.sendto(message, self._address)  # fails if the supervisor is busy, or has gone


NO_SUPERVISOR = Notifier(None)
