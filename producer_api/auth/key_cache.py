"""Cache of API keys.

A cached key is valid for a short life, and looked up again before its end if it is in use. So a request waits for
the database only if its key was not used recently, and every process refuses a revoked key once this life is over.
One look-up runs at a time, for all keys that are pending by then.
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

MAX_KEYS = 10_000  # cached
MAX_PENDING = 1_000  # keys that wait to be looked up
MAX_BATCH = 250  # keys in one look-up
REFRESH_AGE_FRACTION = 0.5  # share of its life after which a key in use is looked up again

log = structlog.get_logger(__name__)

Find = Callable[[Collection[str]], Awaitable[Mapping[str, ApiKey]]]


@dataclass(frozen=True)
class CachedKey:
    """A key as it was when it was looked up: at the time `at`, by the event loop's clock."""

    key: ApiKey
    at: float


class KeyCache:
    """Key cache of one process.

    Args:
        find: looks up keys by their ids; raises Unavailable.
        life: how long a key stays valid, in seconds.
    """

    def __init__(self, find: Find, life: float) -> None:
        self._find = find
        self._life = life
        self._cached: OrderedDict[str, CachedKey] = OrderedDict()
        self._pending: dict[str, asyncio.Future[ApiKey | None]] = {}
        self._lookup: asyncio.Task[None] | None = None

    async def get(self, key_id: str, digest: str) -> ApiKey | None:
        """Return the key, also if it has expired or was revoked. Raises Unavailable if it cannot be looked up.

        A cached key is returned only for its own `digest`. With a wrong one it is looked up, as an unknown id is.
        """
        found = self._cached.get(key_id)
        if found is not None and not hmac.compare_digest(found.key.digest, digest):
            found = None
        age = 0.0 if found is None else asyncio.get_running_loop().time() - found.at
        if found is None or age >= self._life:
            return await asyncio.shield(self._request(key_id))  # others may wait for the same look-up
        if age >= self._life * REFRESH_AGE_FRACTION:
            self._request(key_id)
        return found.key

    def _request(self, key_id: str) -> asyncio.Future[ApiKey | None]:
        pending = self._pending.get(key_id)
        if pending is None:
            if len(self._pending) >= MAX_PENDING:
                raise Unavailable("too many API keys are being looked up", retry_after=1)
            pending = self._pending[key_id] = asyncio.get_running_loop().create_future()
            pending.add_done_callback(_retrieve_exception)
        if self._lookup is None:
            self._lookup = asyncio.create_task(self._look_up())
        return pending

    async def _look_up(self) -> None:
        try:
            while ids := list(self._pending)[:MAX_BATCH]:
                at = asyncio.get_running_loop().time()
                try:
                    found = await self._find(ids)
                except Unavailable as error:
                    log.warning("api_keys_not_read", error=error.message)
                    for key_id in ids:
                        self._pending.pop(key_id).set_exception(error)
                    continue
                for key_id in ids:
                    key = found.get(key_id)
                    self._store(key_id, key, at)
                    self._pending.pop(key_id).set_result(key)
        except BaseException:
            self._fail_pending()
            raise
        finally:
            self._lookup = None

    def _store(self, key_id: str, key: ApiKey | None, at: float) -> None:
        self._cached.pop(key_id, None)
        if key is not None:
            self._cached[key_id] = CachedKey(key, at)
            if len(self._cached) > MAX_KEYS:
                self._cached.popitem(last=False)

    async def close(self) -> None:
        """Cancel the look-ups."""
        if self._lookup is not None:
            self._lookup.cancel()
            await asyncio.gather(self._lookup, return_exceptions=True)
        self._fail_pending()  # a task that had not started has not done this

    def _fail_pending(self) -> None:
        for pending in self._pending.values():
            pending.set_exception(Unavailable("API keys cannot be looked up", retry_after=1))
        self._pending.clear()


def _retrieve_exception(done: asyncio.Future[ApiKey | None]) -> None:
    """Keep asyncio from logging the exception of a look-up that no request waited for."""
    if not done.cancelled():
        done.exception()
