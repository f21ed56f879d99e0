"""Where a request came from: the client's address, and what it is called in logs and traces. Not who sent it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from shared.errors import ConfigError
from shared.ledger.types import Standing

TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
OWN_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
NO_TRACE = b"0" * 32
SITE = 64  # bits that one IPv6 client's addresses share
ADDRESSES = 4096  # that are remembered as parsed
MOST_HOPS = 32  # addresses of X-Forwarded-For that are looked at, from the nearest

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass
class Client:
    """One request's.

    Attributes:
        address: of the client, or of its IPv6 network; empty where there is none, as on a socket.
        http_request_id: its `x-request-id`.
        trace_id: of W3C's `traceparent`; empty without a valid one.
        standings: where its limits are once it was charged, for its answer's headers.
    """

    address: str = ""
    http_request_id: str = ""
    trace_id: str = ""
    standings: Sequence[Standing] = ()


def _trace_id(headers: Mapping[bytes, bytes]) -> str:
    """W3C Trace Context, "traceparent"."""
    found = TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    return "" if found is None or found[1] == NO_TRACE else found[1].decode()


class Proxies:
    """The proxies that are believed about whom they speak for.

    Args:
        trusted: addresses and networks, by commas. Raises ConfigError.
    """

    def __init__(self, trusted: str) -> None:
        try:
            self._trusted: Sequence[Network] = [
                ip_network(each.strip()) for each in trusted.split(",") if each.strip()
            ]
        except ValueError as error:
            raise ConfigError(f"trusted_proxies: {error}", param="trusted_proxies") from None

    def client(self, peer: str, headers: Mapping[bytes, bytes]) -> Client:
        """Of a request with `headers` that came from the address `peer`; it may give its own id, if a sane one."""
        given = headers.get(b"x-request-id", b"")
        http_request_id = given.decode() if OWN_ID.fullmatch(given) else secrets.token_hex(16)
        return Client(self._address(peer, headers), http_request_id, _trace_id(headers))

    def _address(self, peer: str, headers: Mapping[bytes, bytes]) -> str:
        """The address nearest to us, `peer` or one that `headers` tell of, that is no trusted proxy."""
        nearest = _parsed(peer)
        if nearest is None:
            return ""
        if self._trusts(nearest):
            hops = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")
            nearest = self._first_stranger(nearest, reversed(hops[-MOST_HOPS:]))
        return _site(nearest)

    def _first_stranger(self, nearest: Address, hops: Iterable[str]) -> Address:
        for hop in hops:
            address = _parsed(hop.strip())
            if address is None:  # not an address: whoever wrote it is the last that we know
                return nearest
            nearest = address
            if not self._trusts(address):
                return nearest
        return nearest

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


@lru_cache(ADDRESSES)
def _parsed(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _site(address: Address) -> str:
    """Whoever has one IPv6 address has its whole network."""
    if isinstance(address, IPv6Address):
        return str(ip_network((address, SITE), strict=False))
    return str(address)
