"""Which addresses a webhook may go to: a name is resolved once, and what is checked is what is connected to.

So a name whose address changes between the check and the connection (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass

import httpx

from shared.errors import InvalidRequest, Unavailable

MOST_URL = 2048
RESOLVING = 5.0  # seconds
PORTS = {"https": 443, "http": 80}
# IPv6 that carries an IPv4 address to somebody who may deliver to it
CARRIERS = [
    ipaddress.IPv6Network(net) for net in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForbiddenAddress(InvalidRequest):
    """A webhook's address is not one that this server sends to."""

    code = "webhook_address_forbidden"


@dataclass(frozen=True)
class AddressRules:
    """What is allowed beyond public addresses over https."""

    http: bool = False
    private: bool = False

    def parse(self, text: str) -> httpx.URL:
        """A URL that may be sent to, as far as it tells by itself. Raises ForbiddenAddress."""
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, ValueError, TypeError):
            raise ForbiddenAddress("the webhook's url is none", param="webhook.url") from None
        if len(text) > MOST_URL or not url.host or url.userinfo:
            raise ForbiddenAddress(
                f"the webhook's url must have a host, no user, and at most {MOST_URL} characters",
                param="webhook.url",
            )
        if url.scheme != "https" and not (self.http and url.scheme == "http"):
            raise ForbiddenAddress("the webhook's url must be https", param="webhook.url")
        try:
            literal = ipaddress.ip_address(url.host)
        except ValueError:
            return url
        self.check(literal)
        return url

    def check(self, address: IPAddress) -> None:
        """Raises ForbiddenAddress for what is not public."""
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is not None:
            self.check(mapped)
        elif address.is_multicast or address.is_unspecified or (not self.private and not _public(address)):
            raise _forbidden()

    async def resolve(self, url: httpx.URL) -> IPAddress:
        """The address to connect to, checked; all that the name has must be allowed.

        Raises ForbiddenAddress, or Unavailable where the name is not known now.
        """
        port = url.port or PORTS[url.scheme]
        try:
            async with asyncio.timeout(RESOLVING):
                found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError):
            raise Unavailable("the webhook's host is not found") from None
        addresses = [ipaddress.ip_address(str(place[4][0])) for place in found]
        for address in addresses:
            self.check(address)
        if not addresses:
            raise Unavailable("the webhook's host has no address")
        return addresses[0]


def _public(address: IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (
        address.is_site_local or any(address in carrier for carrier in CARRIERS)
    ):
        return False
    return address.is_global and not address.is_reserved


def _forbidden() -> ForbiddenAddress:
    return ForbiddenAddress("the webhook's address is not a public one", param="webhook.url")
