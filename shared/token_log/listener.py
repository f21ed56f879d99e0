"""Listening to a channel whose messages may be missed: what they say is also found in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from shared.token_log.interface import Live


async def listen(live: Live, channel: str, take: Callable[[bytes], object]) -> NoReturn:
    """Call `take` with each message of a channel, until cancelled. Raises Unavailable."""
    async with live.subscribe(channel) as messages:
        while True:
            message = await messages.get(None)
            if isinstance(message, bytes):
                take(message)
