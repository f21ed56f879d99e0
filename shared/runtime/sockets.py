"""Addresses of this machine to listen on: by whom they are reached, and ports that nobody else can have."""

from __future__ import annotations

import errno
import socket
from random import SystemRandom
from typing import Any

SPAN = range(12_000, 22_768)  # these, and these + 10,000 (a cluster's bus), no system gives to what connects out


def unbound(host: str, port: int) -> tuple[socket.socket, Any]:
    """A socket to listen with, and the address to bind it to. Raises OSError for a `host` that is none."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return listener, address


def check_port(host: str, port: int) -> None:
    """Raises OSError where `port` cannot be listened on now."""
    listener, address = unbound(host, port)
    with listener:
        listener.bind(address)


def place_of(host: str, port: int) -> str:
    """Both as one text; `host` is a name or an address of IPv4 or 6."""
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def url_of(host: str, port: int) -> str:
    """The URL of what listens there."""
    return f"http://{place_of(host, port)}"


def free_port(host: str) -> int:
    """One of `free_ports`."""
    return free_ports(host, 1)[0]


def free_ports(host: str, count: int) -> list[int]:
    """Ports that are free now, all different, and never given by the system to what connects out.

    Else a connection could have one before its listener is there, or while that is restarted.

    Raises:
        OSError: so many are not free, or `host` is not this machine's.
    """
    found: list[int] = []
    for port in SystemRandom().sample(SPAN, len(SPAN)):
        try:
            check_port(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(errno.EADDRINUSE, f"{count} free ports are not to be had on {host}")
