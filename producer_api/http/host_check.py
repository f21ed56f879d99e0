"""Checks the Host and Origin headers, where requests need no key.

A page of another site reaches a server on the browser's machine through a name of that site which resolves to it
(DNS rebinding), or through a form, which a browser sends to any address.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from producer_api.http.errors import error_response
from shared.errors import HostNotAllowed, OriginNotAllowed
from shared.settings import Settings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class AllowedSites:
    """Hosts and origins that requests may name.

    Attributes:
        hosts: names of the server besides those of loopback; `*.example.com` is all subdomains, `*` any name.
        addresses: allow any IP address as the host, since no other site can have the server's.
        origins: other sites whose pages may send requests; None allows all, as where each caller needs a key.
    """

    hosts: tuple[str, ...]
    addresses: bool
    origins: tuple[str, ...] | None

    def check(self, method: str, headers: Headers) -> None:
        """Raises HostNotAllowed, OriginNotAllowed."""
        hosts = headers.getlist("host")
        if not hosts or not all(self._is_served(_name(host)) for host in hosts):
            raise HostNotAllowed("the Host header must name localhost or a host in the setting allowed_hosts")
        origin = headers.get("origin")
        if self.origins is None or origin is None or method in SAFE_METHODS or self.origins == ("*",):
            return
        if origin not in self.origins and origin.partition("://")[2] != hosts[0]:
            raise OriginNotAllowed("the Origin header must name this server or a site in the setting cors_origins")

    def _is_served(self, name: str) -> bool:
        if name == "localhost" or name.endswith(".localhost"):
            return True
        return any(_matches(name, host) for host in self.hosts) or self._is_address(name)

    def _is_address(self, name: str) -> bool:
        try:
            return ip_address(name).is_loopback or self.addresses
        except ValueError:
            return False


class HostCheck:
    """Refuses requests that `sites` does not allow."""

    def __init__(self, app: ASGIApp, sites: AllowedSites) -> None:
        self._app = app
        self._sites = sites

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._sites.check(scope["method"], Headers(scope=scope))
            except (HostNotAllowed, OriginNotAllowed) as refusal:
                await error_response(refusal, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def host_check(settings: Settings) -> list[Middleware]:
    """Return the check; nothing where each caller needs a key and allowed_hosts is empty."""
    names = split_list(settings.allowed_hosts.lower())
    if settings.auth and not names:
        return []
    sites = AllowedSites(
        hosts=(*names, settings.host, settings.admin_host),
        addresses=settings.auth or settings.insecure,
        origins=None if settings.auth else split_list(settings.cors_origins),
    )
    return [Middleware(HostCheck, sites=sites)]


def split_list(text: str) -> tuple[str, ...]:
    """Return the items of a setting that holds a list, separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _name(host: str) -> str:
    """Return the name in a Host header, without port, brackets and final dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()


def _matches(name: str, host: str) -> bool:
    return host in ("*", name) or (host.startswith("*.") and name.endswith(host[1:]))
