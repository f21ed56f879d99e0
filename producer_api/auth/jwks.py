"""The public keys of a token's issuer, from a URL or a file: kept for a while, and asked for again within bounds.

It knows nothing of tokens. Reference: RFC 7517.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import structlog
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from shared.errors import ConfigError, Unavailable
from shared.runtime.bind_safety import loopback

LIFE, FILE_LIFE = 300.0, 5.0  # seconds until a URL, or a file, is read again
COOLDOWN = 10.0  # seconds between attempts, whatever tokens come
STALE = 3600.0  # seconds for which keys count that could not be read again
TIMEOUT = 5.0
MOST_BYTES, MOST_KEYS = 256 * 2**10, 64
FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("EdDSA",)}  # never a secret key, of type oct

log = structlog.get_logger(__name__)

Jwk = Mapping[str, Any]


class _Document(msgspec.Struct):
    keys: list[dict[str, Any]]


class KeySet:
    """One issuer's keys.

    Args:
        source: an https URL, or one of this machine, or the path of a file.

    Raises:
        ConfigError: it is none of those.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._url = "://" in source
        parts = urlsplit(source)
        if self._url and not (
            parts.scheme == "https" or (parts.scheme == "http" and loopback(parts.hostname or ""))
        ):
            raise ConfigError("jwt_jwks must be an https URL or a file", param="jwt_jwks")
        if not self._url and not Path(source).is_file():
            raise ConfigError(f"jwt_jwks: there is no file {source}", param="jwt_jwks")
        self._life = LIFE if self._url else FILE_LIFE
        self._keys: tuple[Jwk, ...] = ()
        self._made: dict[tuple[str | None, str], PyJWK] = {}
        self._read_at = self._tried_at = float("-inf")
        self._reading = asyncio.Lock()

    async def find(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        """The key that a token names, or the only one, for `algorithm`. Raises Unavailable."""
        await self._refresh(self._life)
        found = self._find(key_id, algorithm)
        if found is None:  # it may be a new one
            await self._refresh(0)
            found = self._find(key_id, algorithm)
        return found

    def _find(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        if (made := self._made.get((key_id, algorithm))) is not None:
            return made
        fitting = [key for key in self._keys if fits(key, algorithm) and key_id in (None, key.get("kid"))]
        if len(fitting) != 1:
            return None
        try:
            made = self._made[key_id, algorithm] = PyJWK(dict(fitting[0]), algorithm=algorithm)
        except PyJWTError as error:
            log.warning("issuer_key_unusable", error=type(error).__name__)
        return made

    async def _refresh(self, age: float) -> None:
        """Read the source again if what is known is older than `age`, unless that was tried just now."""
        if self._reading.locked() and age and self._age() <= STALE:
            return  # somebody does, and what is known will do
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if now - self._read_at <= age or now - self._tried_at <= min(COOLDOWN, self._life):
                if now - self._read_at > STALE:
                    raise Unavailable("the keys of the tokens' issuer cannot be read", retry_after=1)
                return
            self._tried_at = now
            try:
                data = await (self._fetch() if self._url else asyncio.to_thread(Path(self._source).read_bytes))
                keys = msgspec.json.decode(data[: MOST_BYTES + 1], type=_Document).keys
            except (httpx.HTTPError, OSError, ValueError) as error:
                log.warning("issuer_keys_not_read", error=type(error).__name__)
                if now - self._read_at > STALE:
                    raise Unavailable("the keys of the tokens' issuer cannot be read", retry_after=1) from error
                return
            self._keys, self._made, self._read_at = tuple(keys[:MOST_KEYS]), {}, now

    def _age(self) -> float:
        return asyncio.get_running_loop().time() - self._read_at

    async def _fetch(self) -> bytes:
        """Raises httpx.HTTPError; ValueError for a body that is too large."""
        async with (
            asyncio.timeout(TIMEOUT),  # an OSError, as TimeoutError is
            httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as http,
            http.stream("GET", self._source, headers={"accept": "application/json"}) as response,
        ):
            response.raise_for_status()
            data = b""
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > MOST_BYTES:
                    raise ValueError
            return data


def fits(key: Jwk, algorithm: str) -> bool:
    """Whether `key` is for verifying signatures of `algorithm`, by its type and by what it says of itself."""
    return (
        algorithm.startswith(FAMILIES.get(str(key.get("kty")), ()))
        and key.get("use") in (None, "sig")
        and key.get("alg") in (None, algorithm)
        and "d" not in key  # somebody published a private one
    )
