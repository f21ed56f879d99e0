"""Idempotency-Key: what is sent again under the same key is one request, however often and by however many.

A key is held together with all that makes its request what it is. So whoever finds it held by one who died before
queueing can finish that admission as the same request. It does not know how a request is queued.

Reference: draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from shared.errors import IdempotencyKeyReused, InvalidRequest
from shared.locks.locks import Locks
from shared.protocol import Request, new_job_id
from shared.redis.foreign import UNREADABLE

HEADER = "Idempotency-Key"
KEY = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True)
class Key:
    """A tenant's key, and what was asked under it. Both are hashes: neither tells a key nor a prompt."""

    name: str
    fingerprint: str

    @classmethod
    def of(cls, given: Sequence[str], *, tenant: str, kind: str, body: str) -> Key | None:
        """None where no header was `given`. `body` is canonical; `kind` is the API. Raises InvalidRequest."""
        if not given:
            return None
        if len(given) > 1 or not KEY.fullmatch(given[0]):
            raise InvalidRequest(f"{HEADER} must be 1 to 255 visible ASCII characters, given once", param=HEADER)
        return cls(f"idempotency:{_hash(tenant, given[0])}", _hash(tenant, kind, body))


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """What the server adds to a request: the rest is in the body, of which a key keeps only the fingerprint."""

    id: str
    created_at: float
    seed: int
    fingerprint: str = ""

    @classmethod
    def new(cls, now: float, seed: int, key: Key | None) -> Identity:
        return cls(new_job_id(), now, seed, key.fingerprint if key else "")

    def complete(self, draft: Request, within: float | None) -> Request:
        """`draft` as this request, with `within` seconds from its creation."""
        return msgspec.structs.replace(
            draft,
            id=self.id,
            created_at=self.created_at,
            deadline=draft.deadline if within is None else self.created_at + within,
            params=msgspec.structs.replace(draft.params, seed=self.seed),
        )


class IdempotencyKeys:
    """The keys that stand for requests.

    Args:
        locks: stores the keys.
        ttl: seconds, as long as a request and its result can live.
    """

    def __init__(self, locks: Locks, *, ttl: float) -> None:
        self._locks = locks
        self._ttl = ttl
        self._decode = msgspec.json.Decoder(Identity).decode

    async def take(self, key: Key, identity: Identity) -> Identity:
        """Whose the key is: `identity`, if it was free. Raises IdempotencyKeyReused, Unavailable."""
        try:
            held = self._decode(await self._locks.acquire(key.name, msgspec.json.encode(identity), self._ttl))
        except UNREADABLE:  # another program took the name
            held = Identity("", 0.0, 0)
        if held.fingerprint != key.fingerprint:
            raise IdempotencyKeyReused(f"this {HEADER} came before, with another request", param=HEADER)
        return held

    async def find(self, key: Key) -> Identity | None:
        """Whose the key is; None if it is free. Raises IdempotencyKeyReused, Unavailable."""
        nobody = Identity("", 0.0, 0, key.fingerprint)
        held = await self.take(key, nobody)
        if held != nobody:
            return held
        await self.release(key, nobody)
        return None

    async def release(self, key: Key, identity: Identity) -> None:
        """Nothing came of it: the key is free again."""
        await self._locks.release(key.name, msgspec.json.encode(identity))


def _hash(*parts: str) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def derived_id(job_id: str, number: int) -> str:
    """Of the request `number` that belongs to another: the same whoever derives it."""
    return f"req_{_hash(job_id, str(number))[:32]}"


def derived_seed(seed: int, number: int) -> int:
    return int(_hash("seed", str(seed), str(number))[:16], 16) >> 1
