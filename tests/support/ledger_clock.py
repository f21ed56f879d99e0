"""Clock of the ledger that a test controls."""

from __future__ import annotations

from pathlib import Path

from shared.backend import Backend
from shared.ledger import store
from shared.redis import keys

TIME = "redis.call('TIME')"
KEY = "test:clock"
SLACK_MS = 60_000  # real time passes, too: a key that is about to expire is kept
MIDNIGHT = 20_834 * 86_400.0  # seconds since the epoch, UTC; every window of a day or less begins here


def clocked_script(folder: Path) -> Path:
    """Write a copy of the ledger's script that reads the time from a key."""
    text = store.STRATEGIES.read_text(encoding="utf-8")
    assert text.count(TIME) == 1
    held = f"redis.call('HMGET', '{KEY}', 'seconds', 'microseconds')"
    path = folder / "strategies.lua"
    path.write_text(text.replace(TIME, held), encoding="utf-8")
    return path


class Clock:
    """Clock that only `advance` moves. `now` is in seconds since the epoch."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.now = MIDNIGHT

    async def advance(self, seconds: float) -> None:
        """Advance the ledger's time, and shorten the time to live of its keys."""
        redis = self._backend.redis
        self.now = round(self.now + seconds, 6)
        whole = int(self.now)
        await redis.hset(KEY, mapping={"seconds": whole, "microseconds": round((self.now - whole) * 1e6)})
        for key in await redis.keys(f"{keys.LIMIT_PREFIX}*"):
            left_ms = await redis.pttl(key) - int(seconds * 1000)
            await redis.pexpire(key, max(left_ms, SLACK_MS) if left_ms > -SLACK_MS else 0)
