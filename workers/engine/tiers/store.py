"""Interface of the stores of a KV tier, and the guard that leaves a failing store alone for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import structlog

Value = bytes | memoryview
T = TypeVar("T")

FIRST_PAUSE_S = 1.0  # after a failure; doubled by each further one
LONGEST_PAUSE_S = 60.0

_log = structlog.get_logger(__name__)


class StoreFailed(Exception):
    """Raised by a store that cannot be reached, is full, or is late."""


class Store(Protocol):
    """Values of one size by their keys. Several threads call it; each method raises StoreFailed.

    Its size is bounded: the values that were not used for the longest time are dropped. What is read from it must
    be checked.
    """

    @property
    def name(self) -> str: ...

    def count(self, keys: Sequence[bytes]) -> int:
        """Return how many of the keys it has, up to the first one that is missing."""

    def get(self, keys: Sequence[bytes]) -> list[Value | None]:
        """Return the value of each key, None for one that is missing; other data comes as it is."""

    def keep(self, keys: Sequence[bytes]) -> list[bool]:
        """Mark values as used. Return which of them exist."""

    def put(self, key: bytes, value: Value) -> bool:
        """Write a value. Return False if there is no room for it now."""

    def drop(self, key: bytes) -> None:
        """Remove a value, if there is one."""


class StoreGuard:
    """Calls of a store, which get no answer while it pauses after a failure.

    Attributes:
        failures: how often the store has failed.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self.failures = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._pause = FIRST_PAUSE_S
        self._closed_until = 0.0

    @property
    def is_open(self) -> bool:
        return self._clock() >= self._closed_until

    def call(self, method: Callable[..., T], *args: object) -> T | None:
        """Call a method of the store. Return None if it fails, or may not be called now."""
        if not self.is_open:
            return None
        try:
            result = method(*args)
        except StoreFailed as error:
            self._note(error)
            return None
        self._pause = FIRST_PAUSE_S
        return result

    def _note(self, error: StoreFailed) -> None:
        """Close the guard; of calls that fail together, the first does it and is logged."""
        with self._lock:
            self.failures += 1
            if not self.is_open:
                return
            self._closed_until = self._clock() + self._pause
            cause = error.__cause__ or error
            _log.warning("kv_tier_failed", tier=self.store.name, error=type(cause).__name__, retry_in=self._pause)
            self._pause = min(LONGEST_PAUSE_S, 2 * self._pause)
