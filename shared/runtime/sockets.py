"""Addresses to listen on, and ports that are free."""

from __future__ import annotations

import errno
import socket
from secrets import randbelow
from typing import Any

PORTS = range(12_000, 22_768)  # no system uses these, or these + 10,000 (a cluster's bus), as ephemeral ports


def unbound(host: str, port: int) -> tuple[socket.socket, Any]:
    """Return a socket to listen with, and the address to bind it to. Raises OSError for an invalid `host`."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return listener, address


def reserve_port(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to `port` and does not listen. Raises OSError if the port is in use.

    Until it is closed, `free_ports` of every process skips the port, while a server can listen on it.
    """
    holder, address = unbound(host, port)
    try:
        holder.bind(address)
    except OSError:
        holder.close()
        raise
    return holder


def check_port(host: str, port: int) -> None:
    """Raise OSError if `port` cannot be listened on now."""
    reserve_port(host, port).close()


def place_of(host: str, port: int) -> str:
    """Return `host:port`; `host` is a name, an IPv4 or an IPv6 address."""
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def url_of(host: str, port: int) -> str:
    """Return the http URL of a host and port."""
    return f"http://{place_of(host, port)}"


def free_port(host: str) -> int:
    """Return one port as `free_ports` does."""
    return free_ports(host, 1)[0]


def free_ports(host: str, count: int) -> list[int]:
    """Return different ports that are free now, not reserved, and outside the system's ephemeral range.

    An outgoing connection could take an ephemeral port before its listener starts, or while that is restarted.

    Raises:
        OSError: fewer ports are free, or `host` is not an address of this machine.
    """
    found: list[int] = []
    start = randbelow(len(PORTS))  # processes that look at the same time seldom meet
    for port in (*PORTS[start:], *PORTS[:start]):
        try:
            _check_unbound(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(errno.EADDRINUSE, f"fewer than {count} ports are free on {host}")


def _check_unbound(host: str, port: int) -> None:
    """Raise OSError if any socket is bound to `port`, also one that does not listen."""
    prober, address = unbound(host, port)
    with prober:
        prober.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        prober.bind(address)
