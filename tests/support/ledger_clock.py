"""The ledger's clock in a test's hands."""

from __future__ import annotations

from pathlib import Path

from shared.backend import Backend
from shared.ledger import store
from shared.redis import keys

TIME = "redis.call('TIME')"
KEY = "test:clock"
SLACK_MS = 60_000  # real time runs on beside this clock: a key on the verge of its end is kept
MIDNIGHT = 20_834 * 86_400.0  # seconds since the epoch, UTC; every window of a day or less begins here


def clocked_script(folder: Path) -> Path:
    """Write the ledger's script, its clock replaced by what a key holds."""
    text = store.SCRIPT.read_text(encoding="utf-8")
    assert text.count(TIME) == 1
    held = f"redis.call('HMGET', '{KEY}', 'seconds', 'microseconds')"
    path = folder / "ledger.lua"
    path.write_text(text.replace(TIME, held), encoding="utf-8")
    return path


class Clock:
    """Stands still until it is moved. `now` is in seconds since the epoch."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.now = MIDNIGHT

    async def advance(self, seconds: float) -> None:
        """Let time pass for the ledger, and for what its keys have to live."""
        redis = self._backend.redis
        self.now = round(self.now + seconds, 6)
        whole = int(self.now)
        await redis.hset(KEY, mapping={"seconds": whole, "microseconds": round((self.now - whole) * 1e6)})
        for key in await redis.keys(f"{keys.LIMIT_PREFIX}*"):
            left_ms = await redis.pttl(key) - int(seconds * 1000)
            await redis.pexpire(key, max(left_ms, SLACK_MS) if left_ms > -SLACK_MS else 0)
