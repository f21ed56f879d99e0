"""Rate limits as clients see them: admission, response headers and refusals."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import openai
import pytest

from producer_api.auth.principal import Principal
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.errors import QuotaExceeded
from shared.ledger import store
from shared.settings import Settings
from tests.support.api_server import chat
from tests.support.fakes import MODEL, make_request
from tests.support.ledger_clock import Clock, clocked_script
from tests.support.metered import Metered, changed, metered, planned
from tests.support.redis_servers import opened
from tests.support.scripted_worker import PROMPT_TOKENS, ScriptedWorker
from tests.support.waiting import LIMIT_S

JOB = {"model": MODEL, "prompt": "hi", "max_tokens": 8}


def left(response: httpx.Response, unit: str = "requests") -> tuple[int, int]:
    """Return a limit and what remains of it, from the headers."""
    return tuple(int(response.headers[f"x-ratelimit-{name}-{unit}"]) for name in ("limit", "remaining"))


async def post(api: Metered, path: str = "/v1/jobs", **headers: str) -> httpx.Response:
    return await api.http.post(path, json=JOB if path == "/v1/jobs" else chat(max_tokens=8), headers=headers)


async def refused_by_sdk(api: Metered, retries: int) -> openai.RateLimitError:
    async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=retries) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(**chat(max_tokens=8))
    return refused.value


@pytest.fixture
async def clock(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Clock of the ledger; it stands at a midnight until a test moves it."""
    monkeypatch.setattr(store, "STRATEGIES", clocked_script(tmp_path))
    made = Clock(backend)
    await made.advance(0)
    return made


async def test_every_kind_of_answer_has_limit_headers(
    settings: Settings, backend: Backend, worker: ScriptedWorker, clock: Clock
) -> None:
    plan = {"requests": "10/hour; 5/day", "tokens": "1000/hour"}
    async with metered(planned(settings, plan), backend) as api:
        answering = asyncio.create_task(worker.answer("a", "b", times=3))
        job = await post(api)
        await worker_done(api, job.json()["id"])
        await api.settled()
        whole = await post(api, "/v1/chat/completions")
        streamed = await post(api, "/v1/chat/completions/stream")
        await answering

    assert [job.status_code, whole.status_code, streamed.status_code] == [202, 200, 200]
    assert [left(each) for each in (job, whole, streamed)] == [(5, 4), (5, 3), (5, 2)]
    assert left(job, "tokens") == (1000, 1000 - 8)  # a prompt of 2 characters, and max_tokens
    assert left(whole, "tokens")[1] == 1000 - (PROMPT_TOKENS + 2) - 8  # the usage of the job, and the next estimate
    assert in_seconds(job.headers["x-ratelimit-reset-requests"]) == 86_400


def in_seconds(text: str) -> int:
    """Parse a duration such as 1h2m3s."""
    for unit, factor in (("h", "*3600+"), ("m", "*60+"), ("s", "")):
        text = text.replace(unit, factor)
    return eval(text)


async def worker_done(api: Metered, job: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        assert "event: done" in (await api.http.get(f"/v1/jobs/{job}/events")).text


@pytest.mark.parametrize("unit", ["requests", "tokens"])
async def test_a_refusal_over_the_limit_has_retry_after(
    settings: Settings, backend: Backend, worker: ScriptedWorker, clock: Clock, unit: str
) -> None:
    amount = {"requests": "2/2 hours", "tokens": "16/2 hours"}[unit]
    async with metered(planned(settings, {unit: amount}), backend) as api:
        assert [(await post(api)).status_code for _ in range(2)] == [202, 202]
        refused = await refused_by_sdk(api, 0)
        headers = refused.response.headers
        assert (refused.code, headers["retry-after"], headers["x-should-retry"]) == (
            "rate_limit_exceeded",
            "7200",
            "true",
        )
        assert left(refused.response, unit)[1] == 0
        native = await post(api)
        assert (native.status_code, native.json()["code"]) == (429, "rate_limit_exceeded")
        await clock.advance(7200)
        assert (await post(api)).status_code == 202
        assert api.limited() == {unit: 2}


async def test_a_used_up_budget_names_its_reset_time(
    settings: Settings, backend: Backend, worker: ScriptedWorker, clock: Clock
) -> None:
    async with metered(planned(settings, {"tokens_per_day": 20}), backend) as api:
        answering = asyncio.create_task(worker.answer("a", times=2))
        for _ in range(2):
            await worker_done(api, (await post(api)).json()["id"])
            await api.settled()
        await answering
        # 2 x 6 tokens were used and 8 are left: exactly one more request
        assert left(await post(api), "tokens") == (20, 0)
        refused = await refused_by_sdk(api, 5)
    assert refused.code == "insufficient_quota"
    assert "T00:00:00Z" in refused.message
    assert int(refused.response.headers["retry-after"]) == 86_400
    assert refused.response.headers["x-should-retry"] == "false"


async def test_several_prompts_count_as_one_request(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    body = {"model": MODEL, "prompt": ["a", "b", "c"], "max_tokens": 10}
    limited = planned(settings, {"requests": "5/day", "tokens": "60/day", "concurrent": 1})
    async with metered(limited, backend) as api:
        going = asyncio.create_task(api.http.post("/v1/completions", json=body))
        await worker.answer("x", times=3)
        answered = await going
        await api.settled()
        assert left(answered) == (5, 4)
        assert left(answered, "tokens") == (60, 30)
        refused = await api.http.post("/v1/completions", json={**body, "prompt": ["a"] * 5})
        taken = 3 * (PROMPT_TOKENS + 1)
        assert (refused.status_code, left(refused)[1]) == (429, 4)
        too_large = await api.http.post("/v1/completions", json={**body, "prompt": ["a"] * 7})
        assert too_large.json()["error"]["code"] == "request_exceeds_limit"
        last = await post(api)
    assert (left(last)[1], left(last, "tokens")[1]) == (3, 60 - taken - 8)


async def test_max_tokens_beyond_the_context_charges_the_context(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    """Given a context of 1,024 tokens, no prompt is charged, waits or runs with more."""
    async with metered(planned(settings, {"tokens": "5000/day"}), backend) as api:
        job = await api.http.post("/v1/jobs", json={**JOB, "max_tokens": 10**9, "min_tokens": 2000})
        assert left(job, "tokens") == (5000, 5000 - 1024)
        assert (await backend.transport.depth(MODEL)).waiting_tokens == 1024
        params = (await worker.answer("x")).params
        assert (params.max_tokens, params.min_tokens) == (1024, 1024)
        await worker_done(api, job.json()["id"])
        await api.settled()
        body = {"model": MODEL, "prompt": ["a", "b", "c"], "max_tokens": 10**9}
        several = asyncio.create_task(api.http.post("/v1/completions", json=body))
        await worker.answer("x", times=3)
        assert left(await several, "tokens") == (5000, 5000 - (PROMPT_TOKENS + 1) - 3 * 1024)


async def test_uncharged_answers_have_limit_headers_too(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with metered(planned(settings, {"requests": "9/day"}), backend, settling=False) as api:
        asked = [await post(api, **{"idempotency-key": "k"}) for _ in range(2)]
        asked.append(await api.http.post("/v1/chat/completions", json={"model": MODEL}))
        asked.append(await api.http.post("/v1/completions", content="x"))
        other = await api.http.get("/v1/models")
    assert [each.status_code for each in asked] == [202, 202, 400, 415]
    assert [left(each) for each in asked] == [(9, 8)] * 4
    assert "x-ratelimit-limit-requests" not in other.headers


async def test_lines_of_a_batch_charge_only_the_budget(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    limited = planned(settings, {"requests": "1/day", "concurrent": 1, "tokens_per_day": 20})
    async with metered(limited, backend, settling=False) as api:

        async def line(number: int) -> str:
            draft, job_id = make_request("hi", max_tokens=8), f"req_{number:032x}"
            submit = api.context.gateway.submit_derived
            await submit(draft, job_id=job_id, seed=1, principal=Principal("default"))
            return job_id

        lines = [await line(1), await line(2), await line(1)]
        with pytest.raises(QuotaExceeded):
            await line(3)
        assert await backend.token_log.record(f"req_{3:032x}") is None
        await worker.answer("a", times=2)
        await api.sweep()
        await line(3)
        await line(3)  # sent again, it is charged once
        await worker.answer("a")
        await api.sweep()
        assert (await api.http.post("/v1/jobs", json={**JOB, "max_tokens": 2})).status_code == 202
    assert len(set(lines)) == 2


async def test_a_request_that_never_fits_says_so(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with metered(planned(settings, {"tokens": "7/second"}), backend) as api:
        refused = await post(api, "/v1/chat/completions")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "request_exceeds_limit")
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers


async def test_slots_are_freed_by_ending_and_cancelling(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with metered(planned(settings, {"concurrent": 2}), backend) as api:
        first, second = [(await post(api)).json()["id"] for _ in range(2)]
        refused = await post(api)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        await api.http.delete(f"/v1/jobs/{second}")
        await worker.answer("a")
        await worker_done(api, first)
        await api.settled()
        assert [(await post(api)).status_code for _ in range(3)] == [202, 202, 429]


async def test_slots_of_a_dead_process_are_freed(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    limited = planned(settings, {"concurrent": 1, "tokens": "100/hour"})
    async with metered(limited, backend, settling=False) as dead:
        assert (await post(dead)).status_code == 202
    async with metered(limited, backend, settling=False) as api:
        assert (await post(api)).status_code == 429
        await api.sweep()
        assert (await post(api)).status_code == 429  # still running
        await worker.answer("a")
        await api.sweep()
        again = await post(api)
    assert again.status_code == 202
    assert left(again, "tokens") == (100, 100 - (PROMPT_TOKENS + 1) - 8)


async def test_charges_of_unqueued_requests_are_refunded(
    settings: Settings, backend: Backend, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full queue refunds the charge, and so does the death of a process before queueing."""
    monkeypatch.setattr("producer_api.metering.usage_settler.UNQUEUED_AGE_S", -1.0)
    limited = planned(settings, {"requests": "3/day", "concurrent": 3}, queue_depth=1)
    async with opened(limited) as narrow, metered(limited, narrow, settling=False) as api:
        assert left(await post(api)) == (3, 2)
        full = await post(api)
        assert (full.status_code, full.json()["code"]) == (503, "queue_full")
        await api.context.request_control.background.close()  # wait for the background tasks
        meter, dying = api.context.rate_limiter, [make_request(), make_request()]
        assert meter is not None
        for request in dying:
            await meter.charge(meter.charges([request], Principal("default")), Principal("default"))
        await backend.token_log.create(dying[0])  # the other has not even a log
        assert (await post(api)).json()["code"] == "rate_limit_exceeded"
        await api.sweep()
        assert (await post(api)).json()["code"] == "queue_full"


async def test_a_refused_request_leaves_no_log(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    """A refused request leaves nothing behind, with or without a key, and its key can be used again."""
    async with metered(planned(settings, {"requests": "1/day"}), backend) as api:
        assert (await post(api)).status_code == 202
        before = await backend.redis.keys("hr:{req_*}*")
        for headers in ({}, {"idempotency-key": "k"}, {"idempotency-key": "k"}):
            assert (await post(api, **headers)).status_code == 429
        await api.context.request_control.background.close()  # wait for the background tasks
        assert sorted(await backend.redis.keys("hr:{req_*}*")) == sorted(before)


async def test_a_request_that_joins_is_not_charged(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with metered(planned(settings, {"requests": "2/day"}), backend) as api:
        answers = [await post(api, **{"idempotency-key": "k"}) for _ in range(4)]
        assert [each.status_code for each in answers] == [202] * 4
        assert left(await post(api)) == (2, 0)


async def test_each_key_has_the_limits_of_its_plan(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    plans = {"small": {"requests": "1/day"}, "large": {"requests": "3/day"}, "none": {}}
    limited = changed(settings, plans=plans, auth=True, default_plan="small")
    async with Database.from_settings(limited) as database:
        made = ApiKeys(database, pepper_of(limited))
        texts = [
            (await made.create(tenant="t", scopes=Scopes(), plan=plan))[1] for plan in ("large", "", "none", "gone")
        ]
    async with metered(limited, backend) as api:
        seen = []
        for text in texts:
            bearer = {"authorization": f"Bearer {text}"}
            seen.append([(await post(api, **bearer)).status_code for _ in range(4)])
    assert seen == [[202] * 3 + [429], [202] + [429] * 3, [202] * 4, [500] * 4]


async def test_users_and_addresses_have_their_own_limits(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    limited = changed(
        settings, user_requests="1/day", address_requests="2/day", trusted_proxies="127.0.0.0/8, 10.0.0.1"
    )

    async with metered(limited, backend) as api:

        async def status(user: str, forwarded: str) -> int:
            headers = {"x-forwarded-for": forwarded} if forwarded else {}
            return (await api.http.post("/v1/jobs", json={**JOB, "user": user}, headers=headers)).status_code

        assert [await status("ann", "1.1.1.1"), await status("ann", "1.1.1.1")] == [202, 429]
        assert [await status("bob", "1.1.1.1"), await status("cid", "1.1.1.1")] == [202, 429]
        assert await status("cid", "6.6.6.6, 2.2.2.2, 10.0.0.1") == 202  # a client cannot choose its own address
        assert [await status("", "6.6.6.6, 2.2.2.2"), await status("", "7.7.7.7, 2.2.2.2")] == [202, 429]
        v6 = [await status("", f"2001:db8:0:{net}::{host}") for net, host in ((1, 1), (1, 2), (1, 3), (2, 1))]
        assert v6 == [202, 202, 429, 202]  # an IPv6 network is one client
        assert api.limited() == {"user": 1, "address": 3}


async def test_forwarded_for_of_an_untrusted_peer_is_ignored(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with metered(changed(settings, address_requests="2/day"), backend) as api:
        seen = [(await post(api, **{"x-forwarded-for": f"1.1.1.{i}"})).status_code for i in range(3)]
    assert seen == [202, 202, 429]
