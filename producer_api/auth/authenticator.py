"""Authentication by an API key or a JWT, sent as `Authorization: Bearer`. Reference: RFC 6750."""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from producer_api.auth.failures import FailureLimiter
from producer_api.auth.key_cache import KeyCache
from producer_api.auth.principal import ANONYMOUS, Principal
from shared.accounts.api_keys import KEY, ApiKeys, digest
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.errors import InvalidApiKey, Unauthenticated
from shared.settings import Settings

if TYPE_CHECKING:
    from producer_api.auth.jwt import JwtAuthenticator

SCHEME = "bearer"
KEY_PREFIX = "hr_"
DUMMY_DIGEST = "-" * 64  # as long as a real digest, and equal to none


class Authenticator(Protocol):
    """Authenticates callers by the Authorization headers of their requests."""

    async def __call__(self, headers: Sequence[str], address: str) -> Principal:
        """Return the caller of a request from the client `address`.

        Raises Unauthenticated, InvalidApiKey, TooManyFailures, PermissionDenied; Unavailable if a key cannot be
        looked up.
        """

    async def close(self) -> None: ...


class NoAuthentication:
    """Authenticator that accepts every caller as ANONYMOUS."""

    async def __call__(self, headers: Sequence[str], address: str) -> Principal:
        return ANONYMOUS

    async def close(self) -> None:
        return


class BearerAuthenticator:
    """Authenticates by API keys, and by JWTs if the settings name an issuer.

    Args:
        settings: how long a key is cached, and the JWT issuer.
        database: has the API keys.

    Raises:
        ConfigError: there is no pepper, or the issuer's settings are incomplete.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._pepper = pepper_of(settings)
        self._keys = KeyCache(ApiKeys(database, self._pepper).find, settings.key_life)
        self._failures = FailureLimiter()
        self._jwt = None if settings.jwt_jwks is None else _jwt_authenticator(settings)

    async def __call__(self, headers: Sequence[str], address: str) -> Principal:
        try:
            return await self._authenticate(bearer_token(headers))
        except InvalidApiKey:
            self._failures.count(address)
            raise

    async def _authenticate(self, token: str) -> Principal:
        if self._jwt is not None and not token.startswith(KEY_PREFIX):
            return await self._jwt(token)
        return await self._by_api_key(token)

    async def _by_api_key(self, token: str) -> Principal:
        found = KEY.fullmatch(token)
        proof = digest(self._pepper, token)
        # an unknown id costs the same look-up and comparison as a wrong key, so that timing reveals nothing
        key = await self._keys.get(found[1], proof) if found else None
        matches = hmac.compare_digest(proof, key.digest if key else DUMMY_DIGEST)
        if key is None or not matches:
            raise InvalidApiKey("unknown API key")
        if (why := key.ended(time.time())) is not None:
            raise InvalidApiKey(f"the API key {KEY_PREFIX}{key.id} {why}")
        return Principal(key.tenant, key.id, key.plan, key.scopes)

    async def close(self) -> None:
        await self._keys.close()


def _jwt_authenticator(settings: Settings) -> JwtAuthenticator:
    from producer_api.auth.jwt import JwtAuthenticator  # noqa: PLC0415  most servers need no cryptography

    return JwtAuthenticator(settings)


def bearer_token(headers: Sequence[str]) -> str:
    """Return the token of the Authorization headers. Raises Unauthenticated, InvalidApiKey."""
    if not headers:
        raise Unauthenticated("missing API key; send the header Authorization: Bearer hr_…")
    scheme, _, token = headers[0].partition(" ")
    if len(headers) > 1 or scheme.lower() != SCHEME or not token.strip():
        raise InvalidApiKey("the Authorization header must be sent once, as Bearer and an API key")
    return token.strip()


def make_authenticator(settings: Settings, database: Database) -> Authenticator:
    """Make the authenticator that the settings ask for. Raises ConfigError."""
    return BearerAuthenticator(settings, database) if settings.auth else NoAuthentication()
