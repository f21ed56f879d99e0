"""Store in the memory of this process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from workers.engine.tiers.store import Value


class MemoryStore:
    """Values in memory, at most `budget` bytes; see `Store`."""

    name = "memory"

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used = 0
        self._values: OrderedDict[bytes, Value] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def count(self, keys: Sequence[bytes]) -> int:
        with self._lock:
            return next((number for number, key in enumerate(keys) if key not in self._values), len(keys))

    def get(self, keys: Sequence[bytes]) -> list[Value | None]:
        with self._lock:
            found = [self._values.get(key) for key in keys]
            for key in keys:
                self._use(key)
        return found

    def keep(self, keys: Sequence[bytes]) -> list[bool]:
        with self._lock:
            return [self._use(key) for key in keys]

    def put(self, key: bytes, value: Value) -> bool:
        with self._lock:
            self._remove(key)
            while self._values and self._used + len(value) > self._budget:
                self._remove(next(iter(self._values)))
            self._values[key] = value
            self._used += len(value)
        return True

    def drop(self, key: bytes) -> None:
        with self._lock:
            self._remove(key)

    def _use(self, key: bytes) -> bool:
        if key not in self._values:
            return False
        self._values.move_to_end(key)
        return True

    def _remove(self, key: bytes) -> None:
        value = self._values.pop(key, None)
        if value is not None:
            self._used -= len(value)
