"""Models of the repository, read from its store at most once a second."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from shared.repository.status import ModelStatus
from shared.repository.store import RepositoryStore

SNAPSHOT_LIFE_S = 1.0
MISS_LIFE_S = 0.1  # after which a model that is not there is looked for again


class RepositoryCatalog:
    """Short-lived cache of the statuses; concurrent callers share one read."""

    def __init__(self, store: RepositoryStore) -> None:
        self._store = store
        self._statuses: Mapping[str, ModelStatus] = {}
        self._taken: float | None = None
        self._reading = asyncio.Lock()

    async def statuses(self, life: float = SNAPSHOT_LIFE_S) -> Mapping[str, ModelStatus]:
        """Return the statuses by name, at most `life` seconds old. Raises Unavailable."""
        if (found := self._cached(life)) is not None:
            return found
        async with self._reading:
            if (found := self._cached(life)) is None:
                found = self._statuses = {each.name: each for each in await self._store.statuses()}
                self._taken = asyncio.get_running_loop().time()
            return found

    def forget(self) -> None:
        """Read the statuses again for the next caller."""
        self._taken = None

    def _cached(self, life: float) -> Mapping[str, ModelStatus] | None:
        fresh = self._taken is not None and asyncio.get_running_loop().time() - self._taken <= life
        return self._statuses if fresh else None
