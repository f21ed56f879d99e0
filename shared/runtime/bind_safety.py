"""The check that the API does not listen on public addresses without authentication."""

from __future__ import annotations

import ipaddress
import socket

from shared.errors import ConfigError
from shared.settings import Settings


def loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`; False for an unknown name."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def check_exposure(settings: Settings) -> None:
    """Raise ConfigError if other machines could call without a key; the message says what to change."""
    if settings.auth or settings.insecure:
        return
    hosts = {"host": settings.host}
    if settings.admin_port is not None:
        hosts["admin_host"] = settings.admin_host
    for name, host in hosts.items():
        if not loopback(host):
            raise ConfigError(
                f"{name} {host} can be reached from other machines, and authentication is off: set auth = true and "
                "create a key with `headrace keys create`, or set insecure = true if something else protects it",
                param=name,
            )
