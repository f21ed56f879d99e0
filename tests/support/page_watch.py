"""Watch over a browser page that collects its errors."""

from __future__ import annotations

from dataclasses import dataclass, field

from playwright.sync_api import ConsoleMessage, Page, Request, Response


@dataclass
class Watch:
    """Errors of one page: console errors, uncaught exceptions, failed requests and error statuses.

    An aborted fetch does not count: a reload aborts running fetches. Chromium also reports a fetch as aborted if a
    script reads its body as a stream and sees the end before the loader does.
    """

    page: Page
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        self.page.on("requestfailed", self._on_failed)
        self.page.on("response", self._on_response)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"console: {message.text}")

    def _on_failed(self, request: Request) -> None:
        if (request.resource_type, request.failure) != ("fetch", "net::ERR_ABORTED"):
            self.errors.append(f"failed: {request.url}: {request.failure}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400:
            self.errors.append(f"status {response.status}: {response.url}")
