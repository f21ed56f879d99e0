"""API keys in the accounts' database.

A key is `hr_`, a public id of 12 hex digits, `_`, and a secret of 256 bits in hex. Only the HMAC-SHA256 of the
whole key, under the pepper, is stored.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, insert, or_, select, update

from shared.accounts.database import Database
from shared.accounts.scopes import Scopes
from shared.accounts.tables import api_keys
from shared.errors import ConfigError, NotFound

KEY = re.compile(r"hr_([0-9a-f]{12})_[0-9a-f]{64}")
ID = re.compile(r"(?:hr_)?([0-9a-f]{1,12})(?:_[0-9a-f]*)?")  # or a part of the key, as people paste it
MAX_LABEL_CHARS = 200
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret; times in seconds since the epoch.

    Attributes:
        id: public; the key begins with `hr_` and the id.
        digest: the HMAC of the whole key, in hex.
        tenant: the tenant on whose behalf it calls.
        plan: the name of its plan; empty for the default plan.
        replaced_by: the id of the key that it was rotated to.
    """

    id: str
    tenant: str
    scopes: Scopes
    created_at: float
    digest: str = ""
    label: str = ""
    plan: str = ""
    expires_at: float | None = None
    revoked_at: float | None = None
    replaced_by: str | None = None

    def ended(self, now: float) -> str | None:
        """Return why the key is no longer valid, or None."""
        if self.revoked_at is not None and self.revoked_at <= now:
            return "was revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "has expired"
        return None


def id_of(text: str) -> str:
    """Return the id, or its beginning, from the text given for a key. Raises ConfigError."""
    found = ID.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"a key id must look like hr_0123456789ab, got {text[:20]!r}")
    return found[1]


def digest(pepper: bytes, key: str) -> str:
    """Return the digest that is stored of `key`."""
    return hmac.digest(pepper, key.encode(), hashlib.sha256).hex()


class ApiKeys:
    """All API keys. Every call raises Unavailable if the database cannot be reached.

    Args:
        database: the accounts' database.
        pepper: secret part of the digests.
    """

    def __init__(self, database: Database, pepper: bytes) -> None:
        self._database = database
        self._pepper = pepper

    async def create(
        self, *, tenant: str, scopes: Scopes, label: str = "", plan: str = "", expires_at: float | None = None
    ) -> tuple[ApiKey, str]:
        """Create a key. Returns it with its text, which cannot be recovered later. Raises ConfigError."""
        now = time.time()
        if expires_at is not None and expires_at <= now:
            raise ConfigError("expires_at must be in the future")
        if len(label) > MAX_LABEL_CHARS or (plan and not NAME.fullmatch(plan)):
            raise ConfigError(
                f"a label must have at most {MAX_LABEL_CHARS} characters, a plan name at most 64 of A-Za-z0-9._-"
            )
        made, text = self._draw(ApiKey("", tenant, scopes, now, label=label, plan=plan, expires_at=expires_at))
        async with self._database.writing() as connection:
            await connection.execute(insert(api_keys).values(_row(made)))
        return made, text

    def _draw(self, like: ApiKey) -> tuple[ApiKey, str]:
        key_id = secrets.token_hex(6)
        text = f"hr_{key_id}_{secrets.token_hex(32)}"
        return replace(like, id=key_id, digest=digest(self._pepper, text)), text

    async def find(self, ids: Collection[str]) -> dict[str, ApiKey]:
        """Return the existing keys by id, including revoked and expired ones."""
        async with self._database.reading() as connection:
            rows = await connection.execute(select(api_keys).where(api_keys.c.id.in_(ids)))
            return {row.id: _key(row) for row in rows}

    async def list(self, *, prefix: str = "", tenant: str | None = None, ended: bool = False) -> list[ApiKey]:
        """List keys, newest first; revoked and expired ones only with `ended`."""
        wanted: list[ColumnElement[bool]] = [api_keys.c.id.startswith(prefix, autoescape=True)]
        if tenant is not None:
            wanted.append(api_keys.c.tenant == tenant)
        if not ended:
            wanted.append(api_keys.c.revoked_at.is_(None))
            wanted.append(or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > time.time()))
        async with self._database.reading() as connection:
            rows = await connection.execute(select(api_keys).where(*wanted).order_by(api_keys.c.created_at.desc()))
            return [_key(row) for row in rows]

    async def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key; all processes refuse it within `key_life` seconds. Idempotent. Raises NotFound."""
        async with self._database.writing() as connection:
            row = _one(await connection.execute(select(api_keys).where(api_keys.c.id == key_id)), key_id)
            found = _key(row)
            if found.revoked_at is None:
                found = replace(found, revoked_at=time.time())
                await connection.execute(_change(key_id, revoked_at=found.revoked_at))
            return found

    async def rotate(self, key_id: str, *, overlap: float) -> tuple[ApiKey, str]:
        """Create a key with the same rights and lifetime, and let the old one expire in `overlap` seconds.

        Returns the new key and its text. Raises NotFound, and ConfigError for a key that has ended or was rotated.
        """
        now = time.time()
        async with self._database.writing() as connection:
            old = _key(_one(await connection.execute(select(api_keys).where(api_keys.c.id == key_id)), key_id))
            if (why := old.ended(now)) is not None or old.replaced_by is not None:
                raise ConfigError(f"the key hr_{key_id} {why or f'was already rotated to hr_{old.replaced_by}'}")
            life = None if old.expires_at is None else now + old.expires_at - old.created_at
            made, text = self._draw(replace(old, created_at=now, expires_at=life))
            ends = now + overlap if old.expires_at is None else min(old.expires_at, now + overlap)
            await connection.execute(insert(api_keys).values(_row(made)))
            await connection.execute(_change(key_id, expires_at=ends, replaced_by=made.id))
            return made, text


def _change(key_id: str, **values: Any) -> Any:
    return update(api_keys).where(api_keys.c.id == key_id).values(**values)


def _one(rows: Iterable[Row[Any]], key_id: str) -> Row[Any]:
    for row in rows:
        return row
    raise NotFound(f"there is no key hr_{key_id}")


def _row(key: ApiKey) -> dict[str, Any]:
    scopes = key.scopes
    return {
        **{name: getattr(key, name) for name in ("id", "digest", "tenant", "label", "plan")},
        **{name: getattr(key, name) for name in ("created_at", "expires_at", "revoked_at", "replaced_by")},
        "admin": scopes.admin,
        **{name: _encode(getattr(scopes, name)) for name in ("models", "routes", "classes")},
    }


def _key(row: Row[Any]) -> ApiKey:
    fields = dict(row._mapping)
    names = {name: _decode(fields.pop(name)) for name in ("models", "routes", "classes")}
    return ApiKey(scopes=Scopes(admin=fields.pop("admin"), **names), **fields)


def _encode(names: frozenset[str] | None) -> str | None:
    return None if names is None else msgspec.json.encode(sorted(names)).decode()


def _decode(text: str | None) -> frozenset[str] | None:
    return None if text is None else msgspec.json.decode(text, type=frozenset[str])
