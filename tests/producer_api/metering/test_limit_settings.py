"""Settings of the rate limits: checks, and the behaviour without a reachable ledger."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from producer_api.app import create_app
from shared.backend import Backend
from shared.errors import ConfigError
from shared.settings import Settings, load
from tests.support.fakes import MODEL
from tests.support.metered import changed, metered, planned
from tests.support.redis_servers import opened
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import ticking

JOB = {"model": MODEL, "prompt": "hi", "max_tokens": 8}


@pytest.fixture
def silent() -> Iterator[str]:
    """Server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(("failure", "status"), [("closed", 503), ("open", 202)])
@pytest.mark.parametrize("kind", ["slow", "gone"])
async def test_a_setting_decides_when_the_ledger_is_away(
    settings: Settings, backend: Backend, worker: ScriptedWorker, silent: str, failure: str, status: int, kind: str
) -> None:
    limited = planned(
        settings,
        {"requests": "1/day"},
        rate_limit_failure=failure,
        rate_limit_timeout=0.1,
        limits_redis_url=silent if kind == "slow" else "redis://127.0.0.1:1",
    )
    async with opened(limited) as other, metered(limited, other, settling=False) as api:
        async with ticking() as ticks:
            answers = [await api.http.post("/v1/jobs", json=JOB) for _ in range(2)]
        assert ticks.seconds < 1
        assert [each.status_code for each in answers] == [status] * 2
        assert ("retry-after" in answers[0].headers) is (status == 503)
        assert api.limited() == {"unavailable" if failure == "closed" else "uncounted": 2}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"plans": "{"}, "plans"),
        ({"plans": {"free": {"requests": "ten a minute"}}}, "plans.free.requests"),
        ({"plans": {"free": {"requests": "0/minute"}}}, "plans.free.requests"),
        ({"plans": {"free": {"requests": ";".join(["1/second"] * 5)}}}, "plans.free.requests"),
        ({"plans": {"free": {"concurrent": 0}}}, "plans.free.concurrent"),
        ({"plans": {"Free plan": {}}}, "plans.Free plan"),
        ({"plans": {"free": {"request": "1/second"}}}, "plans.free.request"),
        ({"default_plan": "gold"}, "default_plan"),
        ({"rate_limit_strategy": "leaky"}, "rate_limit_strategy"),
        ({"user_requests": "1/fortnight"}, "user_requests"),
        ({"rate_limit_failure": "ajar"}, "rate_limit_failure"),
        ({"log_prompts": -1}, "log_prompts"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(changes)
    assert named in refused.value.message


async def test_an_invalid_proxy_address_is_named(settings: Settings, backend: Backend) -> None:
    with pytest.raises(ConfigError, match="trusted_proxies"):
        create_app(changed(settings, trusted_proxies="10.0.0.0/8, proxy.local"), backend).build_middleware_stack()
