"""How a client is told where its limits are: OpenAI's x-ratelimit headers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shared.ledger.base import Standing


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
