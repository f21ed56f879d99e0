"""How a caller proves who it is: by an API key or a token, sent as `Authorization: Bearer`. Reference: RFC 6750.

It does not know what the caller wants.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from typing import Protocol

from producer_api.auth.failures import Failures
from producer_api.auth.jwt import Tokens
from producer_api.auth.key_cache import KnownKeys
from producer_api.auth.principal import ANONYMOUS, Principal
from shared.accounts.api_keys import KEY, ApiKeys, digest
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.errors import InvalidApiKey, Unauthenticated
from shared.settings import Settings

SCHEME = "bearer"
PREFIX = "hr_"  # of keys
NO_DIGEST = "-" * 64  # of no key, and as long as any


class Authenticator(Protocol):
    """Tells the caller by the Authorization headers of a request."""

    async def __call__(self, given: Sequence[str], address: str) -> Principal:
        """The caller, who calls from the client `address`.

        Raises Unauthenticated, TooManyFailures, PermissionDenied, and Unavailable where it cannot be told now.
        """

    async def close(self) -> None: ...


class Nobody:
    """Asks for nothing: every caller is ANONYMOUS."""

    async def __call__(self, given: Sequence[str], address: str) -> Principal:
        return ANONYMOUS

    async def close(self) -> None:
        return


class Callers:
    """By API keys, and by tokens where the settings name their issuer.

    Args:
        settings: how long a key is remembered, and whose tokens count.
        database: where keys are looked up.

    Raises:
        ConfigError: there is no pepper, or the issuer is not wholly named.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._pepper = pepper_of(settings)
        self._known = KnownKeys(ApiKeys(database, self._pepper).find, settings.key_life)
        self._failures = Failures()
        self._tokens = None if settings.jwt_jwks is None else Tokens(settings)

    async def __call__(self, given: Sequence[str], address: str) -> Principal:
        try:
            return await self._caller(credential(given))
        except InvalidApiKey:
            self._failures.count(address)
            raise

    async def _caller(self, text: str) -> Principal:
        if self._tokens is not None and not text.startswith(PREFIX):
            return await self._tokens(text)
        return await self._by_key(text)

    async def _by_key(self, text: str) -> Principal:
        found = KEY.fullmatch(text)
        proof = digest(self._pepper, text)
        # a wrong key costs one look-up and one comparison whether or not there is its id: the time tells nothing
        key = await self._known.get(found[1], proof) if found else None
        proven = hmac.compare_digest(proof, key.digest if key else NO_DIGEST)
        if key is None or not proven:
            raise InvalidApiKey("this is no API key of this server")
        if (why := key.ended(time.time())) is not None:
            raise InvalidApiKey(f"the API key {PREFIX}{key.id} {why}")
        return Principal(key.tenant, key.id, key.plan, key.scopes)

    async def close(self) -> None:
        await self._known.close()


def credential(given: Sequence[str]) -> str:
    """What the Authorization headers of a request hold. Raises Unauthenticated."""
    if not given:
        raise Unauthenticated("an API key is needed: send it as Authorization: Bearer hr_…")
    scheme, _, text = given[0].partition(" ")
    if len(given) > 1 or scheme.lower() != SCHEME or not text.strip():
        raise InvalidApiKey("the Authorization header must be Bearer and an API key, given once")
    return text.strip()


def authenticator(settings: Settings, database: Database) -> Authenticator:
    """As the settings ask for. Raises ConfigError."""
    return Callers(settings, database) if settings.auth else Nobody()
