"""Check of webhook addresses.

A name is resolved once, and the connection goes to the address that was checked. So a name whose address changes
between the check and the connection (DNS rebinding) is harmless.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass

import httpx

from shared.errors import InvalidRequest, Unavailable

MAX_URL_CHARS = 2048
RESOLVE_TIMEOUT_S = 5.0
PORTS = {"https": 443, "http": 80}
# IPv6 networks that embed an IPv4 address, which a translator on the way may deliver to
IPV4_TUNNELS = [
    ipaddress.IPv6Network(net) for net in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForbiddenAddress(InvalidRequest):
    """A webhook address that this server does not send to."""

    code = "webhook_address_forbidden"


@dataclass(frozen=True)
class AddressRules:
    """Rules for webhook addresses: public ones over https, and more if `http` or `private` is set."""

    http: bool = False
    private: bool = False

    def parse(self, text: str) -> httpx.URL:
        """Parse a URL and check everything but the addresses of its name. Raises ForbiddenAddress."""
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, ValueError, TypeError):
            raise ForbiddenAddress("webhook.url must be a valid URL", param="webhook.url") from None
        if len(text) > MAX_URL_CHARS or not url.host or url.userinfo:
            raise ForbiddenAddress(
                f"webhook.url must have a host, no user, and at most {MAX_URL_CHARS} characters",
                param="webhook.url",
            )
        if url.scheme != "https" and not (self.http and url.scheme == "http"):
            raise ForbiddenAddress("webhook.url must be https", param="webhook.url")
        try:
            literal = ipaddress.ip_address(url.host)
        except ValueError:
            return url
        self.check(literal)
        return url

    def check(self, address: IPAddress) -> None:
        """Raise ForbiddenAddress if the address is not public."""
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is not None:
            self.check(mapped)
        elif address.is_multicast or address.is_unspecified or (not self.private and not _public(address)):
            raise _forbidden()

    async def resolve(self, url: httpx.URL) -> IPAddress:
        """Resolve the host and return the address to connect to. All addresses of the name must be allowed.

        Raises ForbiddenAddress; Unavailable if the name cannot be resolved now.
        """
        port = url.port or PORTS[url.scheme]
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError):
            raise Unavailable("the host of the webhook cannot be resolved") from None
        addresses = [ipaddress.ip_address(str(place[4][0])) for place in found]
        for address in addresses:
            self.check(address)
        if not addresses:
            raise Unavailable("the host of the webhook has no address")
        return addresses[0]


def _public(address: IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (
        address.is_site_local or any(address in carrier for carrier in IPV4_TUNNELS)
    ):
        return False
    return address.is_global and not address.is_reserved


def _forbidden() -> ForbiddenAddress:
    return ForbiddenAddress("webhook.url must have a public address", param="webhook.url")
