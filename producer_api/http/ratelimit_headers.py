"""OpenAI's x-ratelimit headers: the state of the caller's limits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producer_api.http.endpoint_table import match_of
from producer_api.metering.rate_limiter import RateLimiter
from producer_api.observability.request_log import RequestFacts
from shared.ledger.types import Standing


async def limit_headers(meter: RateLimiter, facts: RequestFacts) -> list[tuple[bytes, bytes]]:
    """Return the headers for the sender of a request, whether it was charged or not."""
    standings = facts.client.standings
    if not standings and facts.principal is not None:  # nothing was charged
        standings = await meter.standings(facts.principal, facts.client)
    return _headers(standings)


def _headers(standings: Sequence[Standing]) -> list[tuple[bytes, bytes]]:
    """Return, for requests and for tokens, the limit with the least remaining."""
    headers = []
    for unit in ("requests", "tokens"):
        limits = [each for each in standings if each.limit.unit == unit]
        if limits:
            least = min(limits, key=lambda each: each.remaining)
            for name, value in (
                ("limit", str(least.limit.amount)),
                ("remaining", str(least.remaining)),
                ("reset", format_duration(least.reset)),
            ):
                headers.append((f"x-ratelimit-{name}-{unit}".encode(), value.encode()))
    return headers


def format_duration(seconds: float) -> str:
    """Return whole seconds in OpenAI's notation: 0s, 17s, 6m0s, 1h0m5s."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"


class LimitHeaders:
    """Adds the headers to every response of a charged endpoint, errors included."""

    def __init__(self, app: ASGIApp, meter: RateLimiter | None) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = match_of(scope).endpoint if scope["type"] == "http" else None
        if self._meter is None or endpoint is None or not endpoint.charged:
            await self._app(scope, receive, send)
            return
        meter, facts = self._meter, scope["state"]["facts"]

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *await limit_headers(meter, facts)]
            await send(message)

        await self._app(scope, receive, send_with_limits)
