"""Claim of a model: its workers must agree on the runtime and the fingerprint, which determine its answers.

Workers that agree hold one lock together: its owner is what they agree on. So a worker learns in one atomic step
whether it is the first, joins the others, or disagrees with them; of two that start at once, one is the first.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import lru_cache

from shared.errors import ConfigError
from shared.locks.locks import Locks
from shared.models.worker_registry import WorkerInfo
from shared.settings import Settings

# How long a worker waits for another claim to expire, in leases: it may be that of workers that were lost or drain.
PATIENCE_LEASES = 1.2
ATTEMPTS_PER_LEASE = 10
MARKING_RUNTIMES = ("native", "vllm")
KEY_DIGEST_BYTES = 2  # of the 32 bits of a watermark's key, half stay unknown; 1 pair of keys in 65,536 is missed
SCRYPT_COST = 2**13  # 8 MiB and 20 ms for each key that is tried


class ModelClaim:
    """Claim of one worker.

    Args:
        lease: seconds for which it holds after the last renewal.
        key_digest: of the watermark's key, "" without a mark; clients see the fingerprint, which does not cover it.
    """

    def __init__(self, locks: Locks, info: WorkerInfo, lease: float, key_digest: str = "") -> None:
        self._locks = locks
        self._model = info.model
        self._computation = f"{info.runtime} {info.fingerprint}"
        self._identity = f"{self._computation} {key_digest}".strip().encode()
        self._lease = lease

    @classmethod
    def from_settings(cls, locks: Locks, info: WorkerInfo, settings: Settings) -> ModelClaim:
        marks = info.task == "generate" and info.runtime in MARKING_RUNTIMES
        key = settings.watermark_key.get_secret_value().lstrip("0")
        return cls(locks, info, settings.lease, _key_digest(key, info.fingerprint) if marks else "")

    async def acquire(self) -> None:
        """Claim the model. Raises ConfigError if running workers disagree; Unavailable."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._lease * PATIENCE_LEASES
        while (holder := await self._acquire()) != self._identity:
            if clock() >= deadline:
                raise self._refusal(holder)
            await asyncio.sleep(self._lease / ATTEMPTS_PER_LEASE)

    def _refusal(self, holder: bytes) -> ConfigError:
        theirs = " ".join(holder.decode(errors="replace").split()[:2])
        if theirs == self._computation:
            return ConfigError(
                f"the running workers of {self._model} have another watermark_key, so they cannot continue marked "
                "answers of this one: give them the same key, stop the others first, or set mixed_workers to allow",
                param="watermark_key",
            )
        return ConfigError(
            f"the running workers of {self._model} have runtime and fingerprint {theirs}, this one has "
            f"{self._computation}: give "
            "them equal weights and settings, stop the others first, or set mixed_workers to allow",
            param="mixed_workers",
        )

    async def renew(self) -> None:
        """Hold the claim for another lease, unless other workers hold theirs. Raises Unavailable."""
        await self._acquire()

    async def _acquire(self) -> bytes:
        return await self._locks.acquire(f"model-claim:{self._model}", self._identity, self._lease)


@lru_cache(1)
def _key_digest(key: str, fingerprint: str) -> str:
    """Return a digest of the key that says whether two workers have the same one, and too little to find it."""
    derived = hashlib.scrypt(key.encode(), salt=fingerprint.encode(), n=SCRYPT_COST, r=8, p=1)
    return derived[:KEY_DIGEST_BYTES].hex()
