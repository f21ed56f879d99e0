"""Keys as they were last looked up: told from memory for a short life, those in use looked up ahead of its end.

So a request waits for the database only with a key that was not used lately, and a revoked key is known as such
everywhere once its life is over. There is one look-up at a time, of all keys that are wanted by then.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

import structlog

from shared.accounts.api_keys import ApiKey
from shared.errors import Unavailable

MOST = 10_000  # keys remembered
MOST_WANTED = 1_000  # keys waiting to be looked up
AT_ONCE = 250  # of one look-up
AHEAD = 0.5  # of a life, after which a key in use is looked up again

log = structlog.get_logger(__name__)

Find = Callable[[Collection[str]], Awaitable[Mapping[str, ApiKey]]]


@dataclass(frozen=True)
class Known:
    """A key as it was at the time `at`, by the event loop's clock."""

    key: ApiKey
    at: float


class KnownKeys:
    """A cache of one process.

    Args:
        find: looks keys up by their ids; raises Unavailable.
        life: seconds for which what was found counts.
    """

    def __init__(self, find: Find, life: float) -> None:
        self._find = find
        self._life = life
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._wanted: dict[str, asyncio.Future[ApiKey | None]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def get(self, key_id: str, digest: str) -> ApiKey | None:
        """The key, ended or not. Raises Unavailable when it cannot be looked up.

        It comes from memory only for its own `digest`: for a wrong one it is looked up, as an unknown id is.
        """
        found = self._known.get(key_id)
        if found is not None and not hmac.compare_digest(found.key.digest, digest):
            found = None
        age = 0.0 if found is None else asyncio.get_running_loop().time() - found.at
        if found is None or age >= self._life:
            return await asyncio.shield(self._want(key_id))  # others may wait for the same
        if age >= self._life * AHEAD:
            self._want(key_id)
        return found.key

    def _want(self, key_id: str) -> asyncio.Future[ApiKey | None]:
        wanted = self._wanted.get(key_id)
        if wanted is None:
            if len(self._wanted) >= MOST_WANTED:
                raise Unavailable("too many keys are being looked up", retry_after=1)
            wanted = self._wanted[key_id] = asyncio.get_running_loop().create_future()
            wanted.add_done_callback(_look_at)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        return wanted

    async def _look(self) -> None:
        try:
            while ids := list(self._wanted)[:AT_ONCE]:
                at = asyncio.get_running_loop().time()
                try:
                    found = await self._find(ids)
                except Unavailable as error:
                    log.warning("keys_not_found", error=error.message)
                    for key_id in ids:
                        self._wanted.pop(key_id).set_exception(error)
                    continue
                for key_id in ids:
                    key = found.get(key_id)
                    self._remember(key_id, key, at)
                    self._wanted.pop(key_id).set_result(key)
        except BaseException:
            self._give_up()
            raise
        finally:
            self._looking = None

    def _remember(self, key_id: str, key: ApiKey | None, at: float) -> None:
        self._known.pop(key_id, None)
        if key is not None:
            self._known[key_id] = Known(key, at)
            if len(self._known) > MOST:
                self._known.popitem(last=False)

    async def close(self) -> None:
        """Leave what is being looked up."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        self._give_up()  # a task that had not begun has not done so

    def _give_up(self) -> None:
        for wanted in self._wanted.values():
            wanted.set_exception(Unavailable("keys cannot be looked up", retry_after=1))
        self._wanted.clear()


def _look_at(done: asyncio.Future[ApiKey | None]) -> None:
    """Nobody may have waited for it."""
    if not done.cancelled():
        done.exception()
