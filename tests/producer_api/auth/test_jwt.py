"""JSON Web Tokens: which are accepted, and what they allow."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from producer_api.app import create_app
from producer_api.auth import jwks
from producer_api.auth.jwks import JwkSet
from producer_api.auth.jwt import JwtAuthenticator, parse_scopes
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.errors import ConfigError, InvalidApiKey, PermissionDenied, Unavailable
from shared.settings import Settings
from tests.support.api_server import calling
from tests.support.scripted_worker import ScriptedWorker

ISSUER, AUDIENCE = "https://issuer.test/", "headrace"
PRIVATE = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def public(algorithm: str, **fields: str) -> dict[str, Any]:
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(PRIVATE[algorithm].public_key(), as_dict=True)
    return {**made, "kid": algorithm, **fields}


def token(algorithm: str = "ES256", key: Any = None, head: dict[str, Any] | None = None, **claims: Any) -> str:
    now = int(time.time())
    fields = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 60, "nbf": now - 1, "sub": "user", "tenant": "acme"}
    fields = {name: value for name, value in (fields | claims).items() if value is not None}
    return jwt.encode(fields, key or PRIVATE[algorithm], algorithm, headers={"kid": algorithm, **(head or {})})


@pytest.fixture
def jwks_file(tmp_path: Path) -> Path:
    file = tmp_path / "jwks.json"
    secret = {"kty": "oct", "kid": "HS256", "k": base64.urlsafe_b64encode(b"k" * 32).decode()}
    file.write_text(json.dumps({"keys": [*map(public, PRIVATE), secret]}))
    return file


@pytest.fixture
def settings(settings: Settings, jwks_file: Path) -> Settings:
    given = {"jwt_jwks": str(jwks_file), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    return settings.model_copy(update={"auth": True, **given})


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_a_token_identifies_its_caller(settings: Settings, algorithm: str) -> None:
    """The principal has the token's tenant, plan and scopes; its key id does not reveal the subject."""
    scope = "openid headrace:admin headrace:model:a headrace:model:b headrace:route:jobs headrace:class:batch"
    found = await JwtAuthenticator(settings)(token(algorithm, scope=scope, plan="gold"))
    assert (found.tenant, found.plan) == ("acme", "gold")
    assert found.scopes == Scopes.parse(admin=True, models=["a", "b"], routes=["jobs"], classes=["batch"])
    assert found.key_id.startswith("jwt_")
    assert "user" not in found.key_id
    assert (await JwtAuthenticator(settings)(token(algorithm))).scopes == Scopes()


def unsigned(**head: Any) -> str:
    def part(fields: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")

    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 60, "tenant": "acme"}
    return f"{part(head)}.{part(claims)}"


def hmac_with_public_secret(algorithm: str, secret: bytes) -> str:
    """Return a token with an HMAC whose secret is public."""
    text = unsigned(alg="HS256", kid=algorithm)
    signature = hmac.digest(secret, text.encode(), hashlib.sha256)
    return f"{text}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


async def test_invalid_tokens_are_refused(settings: Settings) -> None:
    """Unsigned, wrongly signed, foreign, early, expired and incomplete tokens get a 401."""
    authenticate = JwtAuthenticator(settings)
    await authenticate(token())
    pem = PRIVATE["RS256"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    now = int(time.time())
    good = token()
    bad = {
        "unsigned": f"{unsigned(alg='none')}.",
        "unsigned, naming a key": f"{unsigned(alg='none', kid='ES256')}.",
        "public key as secret": hmac_with_public_secret("RS256", pem),
        "a secret from the key set": hmac_with_public_secret("HS256", b"k" * 32),
        "another's key": token(key=ec.generate_private_key(ec.SECP256R1())),
        "another kind of key": token("ES256", head={"kid": "RS256"}),
        "an algorithm that is not allowed": token("RS256", head={"alg": "RS512"}),
        "an unknown key": token(head={"kid": "other"}),
        "a kid of another type": f"{unsigned(alg='ES256', kid=7)}.x",
        "an algorithm of another curve": f"{unsigned(alg='ES384')}.x",
        "another issuer": token(iss="https://other.test/"),
        "another audience": token(aud="other"),
        "expired": token(exp=now - 1),
        "early": token(nbf=now + 60),
        "no expiry": token(exp=None),
        "no issuer": token(iss=None),
        "no audience": token(aud=None),
        "changed": good[:-5] + ("AAAAA" if good[-5:] != "AAAAA" else "BBBBB"),
        "cut": good.rpartition(".")[0],
        "nothing": "x.y.z",
        "long": token(more="x" * 9000),
    }
    for what, given in bad.items():
        with pytest.raises(InvalidApiKey):
            pytest.fail(f"{what} was accepted: {await authenticate(given)}")
    strict = JwtAuthenticator(settings.model_copy(update={"jwt_require_nbf": True}))
    await strict(token())
    await authenticate(token(nbf=None))
    with pytest.raises(InvalidApiKey):
        await strict(token(nbf=None))


async def test_valid_tokens_without_tenant_or_known_scope_get_403(settings: Settings) -> None:
    for claims in ({"tenant": None}, {"tenant": ["a"]}, {"tenant": "{x}"}, {"scope": "headrace:modell:a"}):
        with pytest.raises(PermissionDenied):
            await JwtAuthenticator(settings)(token(**claims))
    with pytest.raises(PermissionDenied, match="not a valid route"):
        parse_scopes(["headrace:route:all"])
    assert parse_scopes("admin model:a") == Scopes(), "scopes of other services are ignored"


async def test_tokens_and_keys_work_over_http(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    app = create_app(settings, backend)
    for given, status in ((token(), 200), (token(aud="x"), 401), (token(tenant=None), 403), ("hr_x", 401)):
        async with calling(app, given) as client:
            assert (await client.get("/v1/models")).status_code == status
    await app.state.context.close()


def test_incomplete_settings_are_refused(settings: Settings) -> None:
    for wrong in (
        {"jwt_issuer": ""},
        {"jwt_audience": ""},
        {"jwt_algorithms": "RS256,HS256"},
        {"jwt_algorithms": "none"},
        {"jwt_jwks": "http://issuer.test/keys"},
        {"jwt_jwks": "/no/such/file"},
    ):
        with pytest.raises(ConfigError):
            JwtAuthenticator(settings.model_copy(update=wrong))


class Issuer:
    """Serves a JWK set and counts the requests."""

    def __init__(self) -> None:
        self.keys = [public("ES256")]
        self.reads = 0
        self.status = "200 OK"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.reads += 1
        body = json.dumps({"keys": self.keys}).encode()
        writer.write(f"HTTP/1.1 {self.status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()


@pytest.fixture
async def issuer() -> AsyncIterator[tuple[Issuer, JwkSet]]:
    made = Issuer()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield made, JwkSet(f"http://127.0.0.1:{port}/jwks.json")


async def test_reads_of_the_jwk_set_are_rate_limited(
    issuer: tuple[Issuer, JwkSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown keys cause no second read at once; after the interval the issuer's new keys are found."""
    served, keys = issuer
    for _ in range(3):
        assert await keys.find("ES256", "ES256") is not None
        assert await keys.find("RS256", "RS256") is None
    assert served.reads == 1
    served.keys.append(public("RS256", alg="RS256", use="sig"))
    monkeypatch.setattr(jwks, "MIN_READ_INTERVAL_S", 0.0)
    assert await keys.find("RS256", "RS256") is not None
    assert await keys.find("RS256", "PS256") is None, "the key is for another algorithm"
    served.keys = [public("ES256", use="enc")]
    monkeypatch.setattr(jwks, "URL_LIFE_S", 0.0)
    keys._life = 0.0
    assert await keys.find("ES256", "ES256") is None


async def test_keys_outlive_an_outage_for_a_while(
    issuer: tuple[Issuer, JwkSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, keys = issuer
    served.status = "500 Internal Server Error"
    with pytest.raises(Unavailable):
        await keys.find("ES256", "ES256")
    monkeypatch.setattr(jwks, "MIN_READ_INTERVAL_S", 0.0)
    served.status = "200 OK"
    assert await keys.find("ES256", "ES256") is not None
    served.status, keys._life = "302 Found", 0.0
    assert await keys.find("ES256", "ES256") is not None
    monkeypatch.setattr(jwks, "MAX_STALE_S", 0.0)
    with pytest.raises(Unavailable):
        await keys.find("ES256", "ES256")


async def test_a_changed_file_is_read_again(jwks_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = JwkSet(str(jwks_file))
    assert await keys.find("ES256", "ES256") is not None
    jwks_file.write_text(json.dumps({"keys": [public("ES256", kid="new")]}))
    keys._life = 0.0
    assert await keys.find("new", "ES256") is not None
    assert await keys.find("ES256", "ES256") is None
    assert await keys.find(None, "ES256") is not None, "the only key needs no kid"
