"""JWK set of a token issuer, read from a URL or a file and cached. Reference: RFC 7517."""

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

URL_LIFE_S, FILE_LIFE_S = 300.0, 5.0  # until a URL or a file is read again
MIN_READ_INTERVAL_S = 10.0  # between two reads, however many tokens with unknown keys arrive
MAX_STALE_S = 3600.0  # how long keys stay valid while they cannot be read again
READ_TIMEOUT_S = 5.0
MAX_BYTES, MAX_KEYS = 256 * 2**10, 64
FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("EdDSA",)}  # by the key type; never "oct", a secret key

log = structlog.get_logger(__name__)

Jwk = Mapping[str, Any]


class _Document(msgspec.Struct):
    keys: list[dict[str, Any]]


class JwkSet:
    """Keys of one issuer.

    Args:
        source: an https URL, an http URL of the loopback interface, or the path of a file.

    Raises:
        ConfigError: `source` is something else.
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
            raise ConfigError(f"jwt_jwks: the file {source} does not exist", param="jwt_jwks")
        self._life = URL_LIFE_S if self._url else FILE_LIFE_S
        self._keys: tuple[Jwk, ...] = ()
        self._parsed: dict[tuple[str | None, str], PyJWK] = {}
        self._read_at = self._tried_at = float("-inf")
        self._reading = asyncio.Lock()

    async def find(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        """Return the key with that id, or the only key if the token names none. Raises Unavailable."""
        await self._refresh(self._life)
        found = self._find(key_id, algorithm)
        if found is None:  # it may have been added since
            await self._refresh(0)
            found = self._find(key_id, algorithm)
        return found

    def _find(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        if (parsed := self._parsed.get((key_id, algorithm))) is not None:
            return parsed
        candidates = [key for key in self._keys if can_verify(key, algorithm) and key_id in (None, key.get("kid"))]
        if len(candidates) != 1:
            return None
        try:
            parsed = self._parsed[key_id, algorithm] = PyJWK(dict(candidates[0]), algorithm=algorithm)
        except PyJWTError as error:
            log.warning("jwk_unusable", error=type(error).__name__)
        return parsed

    async def _refresh(self, age: float) -> None:
        """Read the source again if the keys are older than `age`, unless that was tried a moment ago."""
        if self._reading.locked() and age and self._age() <= MAX_STALE_S:
            return  # another caller is reading it; the present keys are good enough
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if now - self._read_at <= age or now - self._tried_at <= min(MIN_READ_INTERVAL_S, self._life):
                if now - self._read_at > MAX_STALE_S:
                    raise Unavailable("the JWT issuer's keys cannot be read", retry_after=1)
                return
            self._tried_at = now
            try:
                data = await (self._fetch() if self._url else asyncio.to_thread(Path(self._source).read_bytes))
                keys = msgspec.json.decode(data[: MAX_BYTES + 1], type=_Document).keys
            except (httpx.HTTPError, OSError, ValueError) as error:
                log.warning("jwks_not_read", error=type(error).__name__)
                if now - self._read_at > MAX_STALE_S:
                    raise Unavailable("the JWT issuer's keys cannot be read", retry_after=1) from error
                return
            self._keys, self._parsed, self._read_at = tuple(keys[:MAX_KEYS]), {}, now

    def _age(self) -> float:
        return asyncio.get_running_loop().time() - self._read_at

    async def _fetch(self) -> bytes:
        """Fetch the URL. Raises httpx.HTTPError; OSError after a timeout; ValueError for a large body."""
        async with (
            asyncio.timeout(READ_TIMEOUT_S),  # an OSError, as TimeoutError is
            httpx.AsyncClient(timeout=READ_TIMEOUT_S, trust_env=False) as http,
            http.stream("GET", self._source, headers={"accept": "application/json"}) as response,
        ):
            response.raise_for_status()
            data = b""
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise ValueError
            return data


def can_verify(key: Jwk, algorithm: str) -> bool:
    """Return True if the key's type, use and algorithm allow it to verify signatures of `algorithm`."""
    return (
        algorithm.startswith(FAMILIES.get(str(key.get("kty")), ()))
        and key.get("use") in (None, "sig")
        and key.get("alg") in (None, algorithm)
        and "d" not in key  # a private key, published by mistake
    )
