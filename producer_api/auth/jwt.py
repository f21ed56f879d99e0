"""Authentication by JSON Web Tokens of a trusted issuer. Reference: RFC 7519, RFC 8725, RFC 9068."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jwt
from jwt.exceptions import ExpiredSignatureError, ImmatureSignatureError, PyJWTError

from producer_api.auth.jwks import JwkSet
from producer_api.auth.principal import Principal
from shared.accounts.api_keys import NAME
from shared.accounts.scopes import TENANT, Scopes
from shared.errors import ConfigError, InvalidApiKey, PermissionDenied
from shared.settings import Settings

ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
MAX_CHARS = 8192
SCOPE_PREFIX = "headrace:"  # scopes without this prefix are for other services and ignored
KINDS = {"model": "models", "route": "routes", "class": "classes"}


class JwtAuthenticator:
    """Authenticates callers by their tokens.

    Args:
        settings: the issuer, and which claims have the tenant, plan and scopes.

    Raises:
        ConfigError: a setting is missing or wrong.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.jwt_jwks is not None, "jwt_jwks is not set"
        if not (settings.jwt_issuer and settings.jwt_audience):
            raise ConfigError("jwt_jwks needs jwt_issuer and jwt_audience", param="jwt_issuer")
        self._algorithms = [name.strip() for name in settings.jwt_algorithms.split(",")]
        if wrong := [name for name in self._algorithms if name not in ALGORITHMS]:
            raise ConfigError(
                f"jwt_algorithms must be among {', '.join(ALGORITHMS)}, got {wrong[0]!r}", param="jwt_algorithms"
            )
        self._keys = JwkSet(settings.jwt_jwks)
        self._settings = settings
        self._required = ["exp", "iss", "aud", *(["nbf"] if settings.jwt_require_nbf else [])]

    async def __call__(self, token: str) -> Principal:
        """Return the caller. Raises InvalidApiKey, Unavailable; PermissionDenied if a valid token has no tenant."""
        claims = await self._verified(token)
        settings = self._settings
        tenant, plan = claims.get(settings.jwt_tenant_claim), claims.get(settings.jwt_plan_claim)
        if not (isinstance(tenant, str) and TENANT.fullmatch(tenant)):
            raise PermissionDenied(f"the token's claim {settings.jwt_tenant_claim} must be the name of a tenant")
        return Principal(
            tenant,
            key_id=_key_id(claims, tenant),
            plan=plan if isinstance(plan, str) and NAME.fullmatch(plan) else "",
            scopes=parse_scopes(claims.get(settings.jwt_scope_claim)),
        )

    async def _verified(self, token: str) -> Mapping[str, Any]:
        try:
            if len(token) > MAX_CHARS:
                raise InvalidApiKey(f"a token must have at most {MAX_CHARS} characters")
            head = jwt.get_unverified_header(token)
            algorithm, key_id = head.get("alg"), head.get("kid")
            if algorithm not in self._algorithms or not isinstance(key_id, str | None):
                raise InvalidApiKey("the token's alg or kid is not accepted by this server")
            if (key := await self._keys.find(key_id, algorithm)) is None:
                raise InvalidApiKey("token signed with an unknown key (`kid` not in the issuer's JWKS)")
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
            raise InvalidApiKey(f"invalid token: {type(error).__name__}") from None


def parse_scopes(claim: Any) -> Scopes:
    """Parse the scopes `headrace:admin`, `headrace:model:NAME`, `headrace:route:GROUP`, `headrace:class:NAME`.

    `claim` is a string of names separated by spaces, or a list of names. Raises PermissionDenied for an unknown
    scope with our prefix, since it was meant to restrict something.
    """
    given = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else ()
    own = [
        each.removeprefix(SCOPE_PREFIX) for each in given if isinstance(each, str) and each.startswith(SCOPE_PREFIX)
    ]
    names: dict[str, list[str]] = {}
    for each in own:
        kind, _, name = each.partition(":")
        if kind in KINDS:
            names.setdefault(KINDS[kind], []).append(name)
        elif each != "admin":
            raise PermissionDenied(f"the token's scope {SCOPE_PREFIX}{each[:64]} is unknown")
    try:
        return Scopes.parse(admin="admin" in own, **names)
    except ConfigError as error:
        raise PermissionDenied(f"the token's scope: {error.message}") from None


def _key_id(claims: Mapping[str, Any], tenant: str) -> str:
    """Return an id that all tokens of one subject share, and that does not reveal the subject."""
    subject = f"{claims['iss']} {claims.get('sub') or tenant}"
    return f"jwt_{hashlib.sha256(subject.encode()).hexdigest()[:12]}"
