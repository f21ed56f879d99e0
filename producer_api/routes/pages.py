"""Two pages, the playground and the API reference, and the files they load; all are kept in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from producer_api.http.endpoint import Endpoint

WEB = Path(__file__).parent.parent / "web"
HTML = "text/html; charset=utf-8"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILES = {
    "/": ("index.html", HTML),
    "/docs": ("docs.html", HTML),
    "/web/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/web/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/web/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/web/answer.js": ("answer.js", "text/javascript; charset=utf-8"),
    "/web/app.css": ("app.css", "text/css; charset=utf-8"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}


@dataclass(frozen=True)
class StaticFile:
    """One file with its headers.

    A 304 carries the same headers as the 200: a browser replaces those that it cached by those of the 304
    (RFC 9111, section 3.2), so a policy that is missing or different there changes the page it shows.
    """

    path: Path
    media_type: str

    @cached_property
    def content(self) -> bytes:
        return self.path.read_bytes()

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'

    @cached_property
    def headers(self) -> dict[str, str]:
        headers = {"content-type": self.media_type, "etag": self.etag, "cache-control": "no-cache"}
        return headers | ({"content-security-policy": PAGE_POLICY} if self.media_type == HTML else {})

    async def respond(self, request: Request) -> Response:
        """Return the file, or a 304 where the client's copy is current."""
        if _lists(request.headers.getlist("if-none-match"), self.etag):
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)


def _lists(given: list[str], etag: str) -> bool:
    """Return whether an If-None-Match names `etag`; a proxy that compresses makes it a weak one (`W/"…"`)."""
    tags = [tag.strip().removeprefix("W/") for value in given for tag in value.split(",")]
    return etag in tags or "*" in tags


ENDPOINTS = tuple(
    Endpoint("GET", path, StaticFile(WEB / name, media_type).respond, group=None)
    for path, (name, media_type) in FILES.items()
)
