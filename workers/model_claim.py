"""Claim of a model: its workers must agree on the runtime and the fingerprint, which determine its answers.

Workers that agree hold one lock together: its owner is what they agree on. So a worker learns in one atomic step
whether it is the first, joins the others, or disagrees with them; of two that start at once, one is the first.
"""

from __future__ import annotations

import asyncio

from shared.errors import ConfigError
from shared.locks.locks import Locks
from shared.models.worker_registry import WorkerInfo

# How long a worker waits for another claim to expire, in leases: it may be that of workers that were lost or drain.
PATIENCE_LEASES = 1.2
ATTEMPTS_PER_LEASE = 10


class ModelClaim:
    """Claim of one worker.

    Args:
        lease: seconds for which it holds after the last renewal.
    """

    def __init__(self, locks: Locks, info: WorkerInfo, lease: float) -> None:
        self._locks = locks
        self._model = info.model
        self._identity = f"{info.runtime} {info.fingerprint}".encode()
        self._lease = lease

    async def acquire(self) -> None:
        """Claim the model. Raises ConfigError if running workers disagree; Unavailable."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._lease * PATIENCE_LEASES
        while (holder := await self._acquire()) != self._identity:
            if clock() >= deadline:
                raise self._refusal(holder)
            await asyncio.sleep(self._lease / ATTEMPTS_PER_LEASE)

    def _refusal(self, holder: bytes) -> ConfigError:
        theirs, own = holder.decode(errors="replace"), self._identity.decode()
        return ConfigError(
            f"the running workers of {self._model} have runtime and fingerprint {theirs}, this one has {own}: give "
            "them equal weights and settings, stop the others first, or set mixed_workers to allow",
            param="mixed_workers",
        )

    async def renew(self) -> None:
        """Hold the claim for another lease, unless other workers hold theirs. Raises Unavailable."""
        await self._acquire()

    async def _acquire(self) -> bytes:
        return await self._locks.acquire(f"model-claim:{self._model}", self._identity, self._lease)
