"""Whether what a process listens on may be reached from elsewhere, as the settings stand."""

from __future__ import annotations

import ipaddress
import socket

from shared.errors import ConfigError
from shared.settings import Settings


def loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; an unknown name is no loopback."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def check_exposure(settings: Settings) -> None:
    """Raises ConfigError where others could call without a key; it names the ways out."""
    if settings.auth or settings.insecure:
        return
    hosts = {"host": settings.host}
    if settings.admin_port is not None:
        hosts["admin_host"] = settings.admin_host
    for name, host in hosts.items():
        if not loopback(host):
            raise ConfigError(
                f"{name} {host} can be reached from other machines, and nobody is asked for a key: set auth = true "
                "and make a key with `headrace keys create`; or insecure = true, where something else protects it",
                param=name,
            )
