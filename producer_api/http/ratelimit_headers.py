"""How a client is told where its limits are: OpenAI's x-ratelimit headers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producer_api.http.endpoint_table import match_of
from producer_api.metering.rate_limiter import Meter
from producer_api.observability.request_log import Facts
from shared.ledger.types import Standing


async def limit_headers(meter: Meter, facts: Facts) -> list[tuple[bytes, bytes]]:
    """Where the limits are of whoever sent a request, charged or not."""
    standings = facts.client.standings
    if not standings and facts.principal is not None:  # nothing was charged
        standings = await meter.look(facts.principal, facts.client)
    return headers_of(standings)


def headers_of(standings: Sequence[Standing]) -> list[tuple[bytes, bytes]]:
    """Of requests and of tokens, the limit that leaves least."""
    told = []
    for unit in ("requests", "tokens"):
        ours = [each for each in standings if each.limit.unit == unit]
        if ours:
            least = min(ours, key=lambda each: each.remaining)
            for name, value in (
                ("limit", str(least.limit.amount)),
                ("remaining", str(least.remaining)),
                ("reset", duration(least.reset)),
            ):
                told.append((f"x-ratelimit-{name}-{unit}".encode(), value.encode()))
    return told


def duration(seconds: float) -> str:
    """In whole seconds as OpenAI words it: 0s, 17s, 6m0s, 1h0m5s."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"


class LimitHeaders:
    """Tells where the caller's limits are on every answer of the routes that are charged, errors among them."""

    def __init__(self, app: ASGIApp, meter: Meter | None) -> None:
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
