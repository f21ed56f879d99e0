"""Origin of a request: the client's address, and the ids of the request in logs and traces."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from shared.errors import ConfigError
from shared.ledger.types import Standing
from shared.tracing.trace_context import trace_id_of, valid_traceparent
from shared.validation.objective import OBJECTIVE_HEADERS
from shared.validation.ttft_target import HEADERS as TARGET_HEADERS
from shared.validation.ttft_target import joined

HTTP_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
ROUTE_KEY = b"x-route-key"
TURN_KEYS = {name.encode(): name for name in (*TARGET_HEADERS, *OBJECTIVE_HEADERS)}
IPV6_PREFIX_BITS = 64  # one IPv6 client has a whole network of this prefix
MAX_PARSED_ADDRESSES = 4096  # cached
MAX_HOPS = 32  # addresses of X-Forwarded-For to read, starting at the nearest

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass
class Client:
    """Client side of one request.

    Attributes:
        address: the client's IPv4 address or IPv6 network; empty if it has none, as on a Unix socket.
        http_request_id: the request's `x-request-id`.
        traceparent: W3C's trace context; empty without a valid one.
        route_key: the header x-route-key, by which traffic may be split; empty without it.
        turn_headers: those of the headers of a target for the first token, and of an objective, that were sent;
            different values of one are joined.
        standings: the state of the caller's limits after the charge, for the response headers.
    """

    address: str = ""
    http_request_id: str = ""
    traceparent: str = ""
    route_key: str = ""
    turn_headers: Mapping[str, str] = field(default_factory=dict)
    standings: Sequence[Standing] = ()

    @property
    def trace_id(self) -> str:
        return trace_id_of(self.traceparent)

    def rename(self, http_request_id: str) -> None:
        """Take an id from the request's body as its `x-request-id`, if it is valid as one."""
        if HTTP_REQUEST_ID.fullmatch(http_request_id.encode()):
            self.http_request_id = http_request_id


class TrustedProxies:
    """Proxies whose X-Forwarded-For header is believed.

    Args:
        trusted: addresses and networks, separated by commas. Raises ConfigError.
    """

    def __init__(self, trusted: str) -> None:
        try:
            self._trusted: Sequence[Network] = [
                ip_network(each.strip()) for each in trusted.split(",") if each.strip()
            ]
        except ValueError as error:
            raise ConfigError(f"trusted_proxies: {error}", param="trusted_proxies") from None

    def client(self, peer: str, sent: Sequence[tuple[bytes, bytes]]) -> Client:
        """Return the client of a request from the address `peer`. A valid `x-request-id` becomes its id.

        Args:
            sent: the headers of the request, with lower-case names. Of a repeated one, the last counts.
        """
        headers = dict(sent)
        wanted = headers.get(b"x-request-id", b"")
        http_request_id = wanted.decode() if HTTP_REQUEST_ID.fullmatch(wanted) else secrets.token_hex(16)
        route_key = headers.get(ROUTE_KEY, b"").decode("latin-1")
        turn = {
            TURN_KEYS[key]: joined(value.decode("latin-1") for name, value in sent if name == key)
            for key in TURN_KEYS.keys() & headers
        }
        traceparent = valid_traceparent(headers.get(b"traceparent", b"").decode("latin-1"))
        return Client(self._address(peer, headers), http_request_id, traceparent, route_key, turn)

    def _address(self, peer: str, headers: Mapping[bytes, bytes]) -> str:
        """Return the nearest address, `peer` or one of X-Forwarded-For, that is not a trusted proxy."""
        nearest = _parsed(peer)
        if nearest is None:
            return ""
        if self._trusts(nearest):
            hops = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")
            nearest = self._first_untrusted(nearest, reversed(hops[-MAX_HOPS:]))
        return _client_network(nearest)

    def _first_untrusted(self, nearest: Address, hops: Iterable[str]) -> Address:
        for hop in hops:
            address = _parsed(hop.strip())
            if address is None:  # not an address: the proxy that wrote it is the last known hop
                return nearest
            nearest = address
            if not self._trusts(address):
                return nearest
        return nearest

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


@lru_cache(MAX_PARSED_ADDRESSES)
def _parsed(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _client_network(address: Address) -> str:
    """Return an IPv4 address as it is, and the network of an IPv6 address: a client usually has all of it."""
    if isinstance(address, IPv6Address):
        return str(ip_network((address, IPV6_PREFIX_BITS), strict=False))
    return str(address)
