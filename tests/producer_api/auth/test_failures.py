"""Wrong credentials: they cost the same for every id, and repeated ones get a 429."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI

from producer_api.auth import authenticator, failures
from producer_api.auth.failures import FailureLimiter
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.errors import TooManyFailures
from shared.settings import Settings
from tests.support.api_server import calling

UNKNOWN = f"hr_{'0' * 12}_{'0' * 64}"


@pytest.fixture
def queue() -> str:
    return "redis"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"auth": True, "trusted_proxies": "127.0.0.1"})


@pytest.fixture
async def keys(settings: Settings) -> AsyncIterator[ApiKeys]:
    async with Database.from_settings(settings) as database:
        yield ApiKeys(database, pepper_of(settings))


def wrong_secret(key: str) -> str:
    return key[:-1] + ("0" if key[-1] != "0" else "1")


async def test_unknown_id_and_wrong_secret_cost_the_same(
    app: FastAPI, keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    reading, digest = Database.reading, authenticator.digest
    compare = authenticator.hmac.compare_digest

    def recording_reading(self: Database) -> Any:
        done.append("look up")
        return reading(self)

    def recording_digest(pepper: bytes, key: str) -> str:
        done.append(f"digest of {len(key)}")
        return digest(pepper, key)

    class Hmac:
        @staticmethod
        def compare_digest(a: str, b: str) -> bool:
            done.append(f"compare {len(a)} to {len(b)}")
            return compare(a, b)

    _, used = await keys.create(tenant="t", scopes=Scopes())
    _, idle = await keys.create(tenant="t", scopes=Scopes())
    async with calling(app, used) as client:
        assert (await client.get("/v1/models")).status_code == 200
    monkeypatch.setattr(Database, "reading", recording_reading)
    monkeypatch.setattr(authenticator, "digest", recording_digest)
    monkeypatch.setattr(authenticator, "hmac", Hmac)
    costs: dict[str, list[tuple[str, ...]]] = {}
    for name, given in (("unknown", UNKNOWN), ("used", wrong_secret(used)), ("idle", wrong_secret(idle))):
        for _ in range(2):
            done.clear()
            async with calling(app, given) as client:
                answer = await client.get("/v1/models")
            assert answer.status_code == 401
            costs.setdefault(name, []).append(tuple(done))
    assert len(set(costs["unknown"])) == 1
    assert costs["unknown"] == costs["used"] == costs["idle"]
    assert costs["unknown"][0] == ("digest of 80", "look up", "compare 64 to 64")


async def test_repeated_failures_of_an_address_get_429(
    app: FastAPI, keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "MAX_FAILURES", 3)
    _, key = await keys.create(tenant="t", scopes=Scopes())
    statuses = []
    async with calling(app) as client:

        async def ask(given: str | None, address: str = "192.0.2.1") -> Any:
            sent = {"x-forwarded-for": address} | ({"authorization": f"Bearer {given}"} if given else {})
            return await client.get("/v1/models", headers=sent)

        for _ in range(2):
            statuses += [(await ask(given)).status_code for given in (UNKNOWN, wrong_secret(key), "x")]
        assert statuses == [401, 401, 401, 429, 429, 429]
        refused = await ask(UNKNOWN)
        assert refused.json()["error"]["code"] == "too_many_failures"
        assert 0 < int(refused.headers["retry-after"]) <= failures.WINDOW_S
        assert (await ask(key)).status_code == 200, "a valid key still works"
        assert (await ask(None)).status_code == 401, "a missing key is not a wrong one"
        assert (await ask(UNKNOWN, "192.0.2.2")).status_code == 401, "another address has its own count"


def test_the_window_of_failures_ends() -> None:
    now = [100.0]
    table = FailureLimiter(clock=lambda: now[0])
    for _ in range(failures.MAX_FAILURES):
        table.count("a")
    now[0] += 10
    with pytest.raises(TooManyFailures) as refused:
        table.count("a")
    assert refused.value.retry_after == failures.WINDOW_S - 10
    now[0] += failures.WINDOW_S - 10
    table.count("a")


def test_the_number_of_tracked_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MAX_ADDRESSES", 3)
    table = FailureLimiter()
    for address in "abcdefg":
        table.count(address)
    assert len(table) == 3
