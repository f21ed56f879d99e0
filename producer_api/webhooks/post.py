"""One attempt to deliver a webhook: a POST to a checked address, with every redirect checked too."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from producer_api.webhooks.address import AddressRules
from shared.errors import HeadraceError, Unavailable

MAX_REDIRECTS = 3
FOLLOWED_STATUSES = (301, 302, 307, 308)  # not 303, which asks for a GET of another resource
MAX_RETRY_AFTER_S = 6 * 3600.0
NETWORK_ERRORS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, ValueError)


@dataclass(frozen=True)
class Outcome:
    """Outcome of an attempt.

    Attributes:
        status: the receiver's HTTP status; None if it did not answer.
        error: why there was no answer.
        retry_after: the receiver's Retry-After, in seconds.
        permanent: a retry cannot help.
    """

    status: int | None
    error: str | None = None
    retry_after: float = 0.0
    permanent: bool = False

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class WebhookClient:
    """Sends webhooks.

    Every attempt opens its own connection, so that one made for a name never serves another at the same address.

    Args:
        rules: the addresses that are allowed.
        timeout: limit of an attempt, in seconds.
    """

    def __init__(self, rules: AddressRules, *, timeout: float) -> None:
        self._rules = rules
        self._timeout = timeout
        self._http = httpx.AsyncClient(
            verify=ssl.create_default_context(),
            trust_env=False,  # a proxy from the environment could read it or connect elsewhere
            follow_redirects=False,
            timeout=timeout,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._follow(url, headers, body)
        except TimeoutError:
            return Outcome(None, "timeout")
        except Unavailable as error:
            return Outcome(None, error.message)
        except HeadraceError as error:
            return Outcome(None, error.message, permanent=True)
        except NETWORK_ERRORS as error:
            return Outcome(None, type(error).__name__)

    async def _follow(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        for _ in range(MAX_REDIRECTS + 1):
            outcome, target = await self._once(url, headers, body)
            if target is None:
                return outcome
            url = target
        return Outcome(outcome.status, f"more than {MAX_REDIRECTS} redirects")

    async def _once(self, text: str, headers: Mapping[str, str], body: bytes) -> tuple[Outcome, str | None]:
        """Send once; return the outcome and the target of a redirect. Raises HeadraceError, NETWORK_ERRORS."""
        url = self._rules.parse(text)
        address = await self._rules.resolve(url)
        request = self._http.build_request(
            "POST",
            url.copy_with(host=str(address)),
            headers={**headers, "host": url.netloc.decode("ascii"), "content-type": "application/json"},
            content=body,
            extensions={**self._http_timeout(), "sni_hostname": url.raw_host.decode("ascii")},
        )
        response = await self._http.send(request, stream=True)
        try:
            location = response.headers.get("location")
            target = str(url.join(location)) if response.status_code in FOLLOWED_STATUSES and location else None
            return Outcome(response.status_code, retry_after=_retry_after(response.headers)), target
        finally:
            await response.aclose()  # the body is not needed

    def _http_timeout(self) -> dict[str, object]:
        return {"timeout": httpx.Timeout(self._timeout).as_dict()}


def _retry_after(headers: httpx.Headers) -> float:
    given = headers.get("retry-after", "")
    if given.isascii() and given.isdigit() and len(given) < 10:
        return min(float(given), MAX_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(given)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    wait = (at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)
    return min(max(wait.total_seconds(), 0.0), MAX_RETRY_AFTER_S)
