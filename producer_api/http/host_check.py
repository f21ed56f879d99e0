"""Which names the server answers to, and which sites' pages may send to it, where no key tells who calls.

A browser's page of another site reaches a server on its machine by a name of that site which points here (DNS
rebinding), or by a form, which a browser sends to anybody. It knows nothing of what a route does.
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

READING = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Sites:
    """What is let through.

    Attributes:
        hosts: names of the server beside those of loopback; `*.example.com` is all below, `*` any.
        addresses: by any address of its own too, which no other site can have.
        origins: other sites whose pages may send; None lets all, as where each caller needs a key.
    """

    hosts: tuple[str, ...]
    addresses: bool
    origins: tuple[str, ...] | None

    def check(self, method: str, headers: Headers) -> None:
        """Raises HostNotAllowed, OriginNotAllowed."""
        hosts = headers.getlist("host")
        if not hosts or not all(self._answers_to(_name(host)) for host in hosts):
            raise HostNotAllowed(
                "this server does not answer to the name that the Host header gives; the setting allowed_hosts has "
                "those it answers to beside localhost"
            )
        origin = headers.get("origin")
        if self.origins is None or origin is None or method in READING or self.origins == ("*",):
            return
        if origin not in self.origins and origin.partition("://")[2] != hosts[0]:
            raise OriginNotAllowed(
                "this server takes nothing from another site's page that cors_origins does not name"
            )

    def _answers_to(self, name: str) -> bool:
        if name == "localhost" or name.endswith(".localhost"):
            return True
        return any(_fits(name, host) for host in self.hosts) or self._is_address(name)

    def _is_address(self, name: str) -> bool:
        try:
            return ip_address(name).is_loopback or self.addresses
        except ValueError:
            return False


class SiteCheck:
    """Refuses what `sites` does not let through."""

    def __init__(self, app: ASGIApp, sites: Sites) -> None:
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


def site_check(settings: Settings) -> list[Middleware]:
    """None where each caller needs a key, unless names are set."""
    names = listed(settings.allowed_hosts.lower())
    if settings.auth and not names:
        return []
    sites = Sites(
        hosts=(*names, settings.host, settings.admin_host),
        addresses=settings.auth or settings.insecure,
        origins=None if settings.auth else listed(settings.cors_origins),
    )
    return [Middleware(SiteCheck, sites=sites)]


def listed(text: str) -> tuple[str, ...]:
    """The parts of a setting that has several, by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _name(host: str) -> str:
    """Of a Host header, without the port, brackets and a last dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()


def _fits(name: str, host: str) -> bool:
    return host in ("*", name) or (host.startswith("*.") and name.endswith(host[1:]))
