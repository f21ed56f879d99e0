"""Callers by JSON Web Tokens of an issuer that the settings trust. Reference: RFC 7519, RFC 8725, RFC 9068."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jwt
from jwt.exceptions import ExpiredSignatureError, ImmatureSignatureError, PyJWTError

from producer_api.auth.jwks import KeySet
from producer_api.auth.principal import Principal
from shared.accounts.api_keys import NAME
from shared.accounts.scopes import TENANT, Scopes
from shared.errors import ConfigError, InvalidApiKey, PermissionDenied
from shared.settings import Settings

ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
MOST_CHARS = 8192
OURS = "headrace:"  # what our scopes begin with: an issuer's others are not ours to read
KINDS = {"model": "models", "route": "routes", "class": "classes"}


class Tokens:
    """Tells the caller by a token.

    Args:
        settings: whose tokens count, and which claims say what.

    Raises:
        ConfigError: they lack something.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.jwt_jwks is not None, "there is no issuer"
        if not (settings.jwt_issuer and settings.jwt_audience):
            raise ConfigError("jwt_jwks needs jwt_issuer and jwt_audience", param="jwt_issuer")
        self._algorithms = [name.strip() for name in settings.jwt_algorithms.split(",")]
        if wrong := [name for name in self._algorithms if name not in ALGORITHMS]:
            raise ConfigError(
                f"jwt_algorithms: {wrong[0]!r} is none of {', '.join(ALGORITHMS)}", param="jwt_algorithms"
            )
        self._keys = KeySet(settings.jwt_jwks)
        self._settings = settings
        self._required = ["exp", "iss", "aud", *(["nbf"] if settings.jwt_require_nbf else [])]

    async def __call__(self, token: str) -> Principal:
        """Raises InvalidApiKey; PermissionDenied for a good token that names no tenant; Unavailable."""
        claims = await self._verified(token)
        settings = self._settings
        tenant, plan = claims.get(settings.jwt_tenant_claim), claims.get(settings.jwt_plan_claim)
        if not (isinstance(tenant, str) and TENANT.fullmatch(tenant)):
            raise PermissionDenied(f"the token's claim {settings.jwt_tenant_claim} names no tenant")
        return Principal(
            tenant,
            key_id=_id(claims, tenant),
            plan=plan if isinstance(plan, str) and NAME.fullmatch(plan) else "",
            scopes=scopes_of(claims.get(settings.jwt_scope_claim)),
        )

    async def _verified(self, token: str) -> Mapping[str, Any]:
        try:
            if len(token) > MOST_CHARS:
                raise InvalidApiKey(f"a token has at most {MOST_CHARS} characters")
            head = jwt.get_unverified_header(token)
            algorithm, key_id = head.get("alg"), head.get("kid")
            if algorithm not in self._algorithms or not isinstance(key_id, str | None):
                raise InvalidApiKey("the token is signed in a way that this server does not take")
            if (key := await self._keys.find(key_id, algorithm)) is None:
                raise InvalidApiKey("the token's key is none of its issuer's")
            return jwt.decode(
                token,
                key,
                algorithms=self._algorithms,
                audience=self._settings.jwt_audience,
                issuer=self._settings.jwt_issuer,
                leeway=self._settings.jwt_leeway,
                options={"require": self._required, "enforce_minimum_key_length": True},
            )
        except ExpiredSignatureError:
            raise InvalidApiKey("the token has expired") from None
        except ImmatureSignatureError:
            raise InvalidApiKey("the token is not valid yet") from None
        except PyJWTError as error:
            raise InvalidApiKey(f"the token is not valid: {type(error).__name__}") from None


def scopes_of(claim: Any) -> Scopes:
    """What `headrace:admin`, `headrace:model:NAME`, `headrace:route:GROUP` and `headrace:class:NAME` allow.

    `claim` is a text of names between spaces, or a list of them. Raises PermissionDenied for one of ours that is
    none: it was meant to narrow something.
    """
    given = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else ()
    ours = [each.removeprefix(OURS) for each in given if isinstance(each, str) and each.startswith(OURS)]
    names: dict[str, list[str]] = {}
    for each in ours:
        kind, _, name = each.partition(":")
        if kind in KINDS:
            names.setdefault(KINDS[kind], []).append(name)
        elif each != "admin":
            raise PermissionDenied(f"the token's scope {OURS}{each[:64]} is none")
    try:
        return Scopes.parse(admin="admin" in ours, **names)
    except ConfigError as error:
        raise PermissionDenied(f"the token's scope: {error.message}") from None


def _id(claims: Mapping[str, Any], tenant: str) -> str:
    """The same for all tokens of one subject, and telling nothing of it."""
    subject = f"{claims['iss']} {claims.get('sub') or tenant}"
    return f"jwt_{hashlib.sha256(subject.encode()).hexdigest()[:12]}"
