"""Idempotency-Key: a request that is sent several times under the same key runs once.

A key is stored with the identity of its request. If the process that took it died before it queued the request, the
next one that gets the key finishes that admission with the same identity.

References: draft-ietf-httpapi-idempotency-key-header-08, whose keys are strings in quotes; RFC 9651, 4.2 (parsing
structured fields). The bare form, which most clients send, is accepted too: `"x"` and `x` are one key.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from shared.errors import IdempotencyKeyReused, InvalidRequest, NotFound, Unavailable
from shared.locks.locks import Locks
from shared.metrics.api import DUPLICATES
from shared.metrics.series import Values
from shared.protocol import Request, new_job_id
from shared.redis.foreign import UNREADABLE

HEADER = "Idempotency-Key"
MAX_KEY_CHARS = 255
BARE_KEY = re.compile(r"[!#-~][!-~]*", re.ASCII)
QUOTED = r'"((?:[ !#-\[\]-~]|\\["\\])*)"'  # an RFC 9651 string
# parameters of the string, which mean nothing here, with a number, date, token, bytes, boolean or string as value
VALUE = rf"(?:@?-?\d{{1,15}}(?:\.\d{{1,3}})?|[A-Za-z*][!#$%&'*+.^_`|~:/\w-]*|:[A-Za-z0-9+/=]*:|\?[01]|{QUOTED})"
QUOTED_KEY = re.compile(rf"{QUOTED}(?:; *[a-z*][a-z0-9_.*-]*(?:={VALUE})?)*", re.ASCII)


@contextmanager
def reading_joined() -> Iterator[None]:
    """Raise Unavailable for NotFound: a joined request was deleted since, as one is that was lost before it ran.

    The key may then be sent again, and makes a new request.
    """
    try:
        yield
    except NotFound:
        raise Unavailable(f"the request of this {HEADER} was lost before it ran; send it again") from None


@dataclass(frozen=True)
class IdempotencyKey:
    """A tenant's key and the request sent with it. Both are hashes and reveal neither key nor prompt."""

    name: str
    fingerprint: str

    @classmethod
    def from_header(cls, values: Sequence[str], *, tenant: str, kind: str, body: str) -> IdempotencyKey | None:
        """Parse the header's values; return None without any.

        Args:
            kind: the API that was called.
            body: the request's body in its canonical form.

        Raises InvalidRequest.
        """
        if not values:
            return None
        if len(values) > 1:
            raise InvalidRequest(f"{HEADER} must be sent once", param=HEADER)
        return cls(f"idempotency:{_hash(tenant, _parsed(values[0]))}", _hash(tenant, kind, body))


def _parsed(value: str) -> str:
    """Return the key in a header's value. Raises InvalidRequest."""
    value = value.strip(" \t")
    if value.startswith('"'):
        if not (quoted := QUOTED_KEY.fullmatch(value)):
            raise InvalidRequest(
                f'{HEADER} must be a whole string in quotation marks, with \\ before each " and \\ in it',
                param=HEADER,
            )
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    else:
        key = value if BARE_KEY.fullmatch(value) else ""
    if not 1 <= len(key) <= MAX_KEY_CHARS:
        raise InvalidRequest(
            f"{HEADER} must have 1 to {MAX_KEY_CHARS} visible ASCII characters, or be a string in quotation marks",
            param=HEADER,
        )
    return key


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """The fields that the server adds to a request, and the fingerprint of the rest if it has a key."""

    id: str
    created_at: float
    seed: int
    fingerprint: str = ""

    @classmethod
    def new(cls, now: float, seed: int, key: IdempotencyKey | None) -> Identity:
        return cls(new_job_id(), now, seed, key.fingerprint if key else "")

    def complete(self, draft: Request, timeout_s: float | None) -> Request:
        """Return `draft` with this identity, and with a deadline if `timeout_s` is set."""
        return msgspec.structs.replace(
            draft,
            id=self.id,
            created_at=self.created_at,
            deadline=draft.deadline if timeout_s is None else self.created_at + timeout_s,
            params=msgspec.structs.replace(draft.params, seed=self.seed),
        )


class IdempotencyKeys:
    """Store of idempotency keys.

    Args:
        locks: stores the keys.
        ttl: how long to keep a key, in seconds: as long as a request and its result can live.
        duplicates: counts requests that were sent again, by outcome.
    """

    def __init__(self, locks: Locks, *, ttl: float, duplicates: Values | None = None) -> None:
        self._duplicates = duplicates or Values(DUPLICATES)
        self._locks = locks
        self._ttl = ttl
        self._decode = msgspec.json.Decoder(Identity).decode

    async def take(self, key: IdempotencyKey, identity: Identity) -> Identity:
        """Take the key if it is free, and return its holder. Raises IdempotencyKeyReused, Unavailable."""
        try:
            held = self._decode(await self._locks.acquire(key.name, msgspec.json.encode(identity), self._ttl))
        except UNREADABLE:  # another program wrote to this name
            held = Identity("", 0.0, 0)
        if held.fingerprint != key.fingerprint:
            self._duplicates.labels("conflict").inc()
            raise IdempotencyKeyReused(f"this {HEADER} was already used with a different request", param=HEADER)
        return held

    def count_joined(self, *, joined: bool) -> None:
        """Count a request if it joined an earlier one instead of being queued."""
        self._duplicates.labels("joined").inc(joined)

    async def find(self, key: IdempotencyKey) -> Identity | None:
        """Return the holder of the key, or None if it is free. Raises IdempotencyKeyReused, Unavailable."""
        probe = Identity("", 0.0, 0, key.fingerprint)
        held = await self.take(key, probe)
        if held != probe:
            return held
        await self.release(key, probe)
        return None

    async def release(self, key: IdempotencyKey, identity: Identity) -> None:
        """Free the key of a request that was not queued."""
        await self._locks.release(key.name, msgspec.json.encode(identity))


def _hash(*parts: str) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def derived_id(job_id: str, number: int) -> str:
    """Return the id of part `number` of a request; every process derives the same."""
    return f"req_{_hash(job_id, str(number))[:32]}"


def derived_seed(seed: int, number: int) -> int:
    """Return the seed of part `number` of a request; every process derives the same."""
    return int(_hash("seed", str(seed), str(number))[:16], 16) >> 1
