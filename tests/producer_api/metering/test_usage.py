"""Usage records: exact, written once even if processes die; and `headrace usage`."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from sqlalchemy import select, update

from headrace.cli.main import app
from shared.accounts.tables import usage
from shared.accounts.usage import UsageRecords
from shared.backend import Backend
from shared.errors import Unavailable
from shared.ledger.store import Ledger
from shared.redis import keys
from shared.settings import Settings
from tests.support.api_server import chat
from tests.support.fakes import MODEL
from tests.support.metered import Metered, changed, metered
from tests.support.scripted_worker import PROMPT_TOKENS, ScriptedWorker
from tests.support.typer_internals import CliRunner
from tests.support.waiting import LIMIT_S

JOB = {"model": MODEL, "prompt": "hi", "max_tokens": 8}


async def submit(api: Metered, **fields: object) -> str:
    response = await api.http.post("/v1/jobs", json={**JOB, **fields})
    assert response.status_code == 202, response.text
    return response.json()["id"]


async def rows(api: Metered) -> dict[str, dict[str, object]]:
    async with api.context.database.reading() as connection:
        return {row["job_id"]: dict(row) for row in (await connection.execute(select(usage))).mappings()}


async def test_each_ended_request_has_one_record(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with metered(settings, backend) as api:
        answered = await submit(api, user="ann")
        await worker.answer("a", "b", "c")
        cancelled = await submit(api)
        job = await worker.take()
        await job.say("x")
        await api.http.delete(f"/v1/jobs/{cancelled}")
        unstarted = await submit(api)
        await api.http.delete(f"/v1/jobs/{unstarted}")
        going = asyncio.create_task(api.http.post("/v1/chat/completions", json=chat()))
        chatted = (await worker.answer("a")).id
        assert (await going).status_code == 200
        await submit(api)  # still running
        async with asyncio.timeout(LIMIT_S):
            while len(found := await rows(api)) < 4:
                await asyncio.sleep(0.02)

    assert set(found) == {answered, cancelled, unstarted, chatted}
    recorded = {
        name: (row["state"], row["finish"], row["prompt_tokens"], row["completion_tokens"])
        for name, row in found.items()
    }
    assert recorded[answered] == ("completed", "stop", PROMPT_TOKENS, 3)
    assert recorded[cancelled] == ("cancelled", "cancelled", PROMPT_TOKENS, 1)
    assert recorded[unstarted] == ("cancelled", "cancelled", 0, 0)
    assert recorded[chatted] == ("completed", "stop", PROMPT_TOKENS, 1)
    row = found[answered]
    assert (row["tenant"], row["user_name"], row["model"], row["day"]) == (
        "default",
        "ann",
        MODEL,
        int(time.time() // 86_400),
    )
    assert row["created_at"] <= row["started_at"] <= row["first_token_at"] <= row["finished_at"]


@pytest.mark.parametrize("dies", ["before the end", "before it settles", "before it writes", "before it says so"])
async def test_a_record_is_written_once_whenever_a_process_dies(
    settings: Settings, backend: Backend, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    async with metered(settings, backend, settling=False) as dead:
        job_id = await submit(dead)
        if dies != "before the end":
            await worker.answer("a")
        if dies not in ("before the end", "before it settles"):
            await dead.settler.settle([job_id])
        if dies == "before it says so":
            with monkeypatch.context() as dying:
                dying.setattr(Ledger, "written", nothing)
                await dead.settler.flush()
    if dies == "before the end":
        await worker.answer("a")
    async with (
        metered(settings, backend, settling=False) as other,
        metered(settings, backend, settling=False) as api,
    ):
        await asyncio.gather(other.sweep(), api.sweep())
        await asyncio.gather(other.settler.flush(), api.settler.flush())
        assert [row["completion_tokens"] for row in (await rows(api)).values()] == [1]
        await api.settled()
        assert await api.usage() == [{"requests": 1, "prompt_tokens": PROMPT_TOKENS, "completion_tokens": 1}]


async def nothing(*_: object) -> None: ...


async def test_a_backlog_of_records_refuses_new_requests(
    settings: Settings, backend: Backend, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded = changed(settings, usage_backlog=2)

    async def away(*_: object) -> None:
        raise Unavailable("the accounts' database cannot be used")

    async with metered(bounded, backend, settling=False) as api:
        with monkeypatch.context() as broken:
            broken.setattr(UsageRecords, "write", away)
            for _ in range(2):
                job_id = await submit(api)
                await worker.answer("a")
                await api.settler.settle([job_id])
                await api.settler.flush()
            refused = await api.http.post("/v1/jobs", json=JOB)
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert await rows(api) == {}
        await api.sweep()
        await api.settler.flush()
        assert len(await rows(api)) == 2
        await submit(api)


async def test_a_deleted_running_response_is_recorded(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with metered(settings, backend, settling=False) as api:
        body = {"model": MODEL, "input": "hi", "background": True}
        response = (await api.http.post("/v1/responses", json=body)).json()["id"]
        job = await worker.take()
        await job.say("x")
        assert (await api.http.delete(f"/v1/responses/{response}")).status_code == 200
        assert await backend.token_log.record(job.request.id) is None
        await api.sweep()
        await api.settler.flush()
        assert await api.usage("state") == [
            {"state": "cancelled", "requests": 1, "prompt_tokens": PROMPT_TOKENS, "completion_tokens": 1}
        ]


async def test_with_usage_off_nothing_is_kept(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    async with metered(changed(settings, usage=False), backend, settling=False) as api:
        await submit(api)
        assert await backend.redis.exists(*keys.LEDGER) == 0


async def test_old_records_are_deleted(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    async with metered(changed(settings, usage_ttl=100), backend, settling=False) as api:
        for _ in range(2):
            await api.settler.settle([await done(api, worker)])
        await api.settler.flush()
        old = next(iter(await rows(api)))
        async with api.context.database.writing() as connection:
            await connection.execute(
                update(usage).where(usage.c.job_id == old).values(created_at=time.time() - 101)
            )
        tidying = asyncio.create_task(api.settler.prune())
        async with asyncio.timeout(LIMIT_S):
            while old in await rows(api):
                await asyncio.sleep(0.01)
        tidying.cancel()
        assert len(await rows(api)) == 1


async def done(api: Metered, worker: ScriptedWorker) -> str:
    job_id = await submit(api)
    await worker.answer("a")
    return job_id


async def test_the_command_sums_by_key_model_and_day(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with metered(settings, backend, settling=False) as api:
        for user in ("ann", "ann", "bob"):
            job_id = await submit(api, user=user)
            await worker.answer("a", "b")
            await api.settler.settle([job_id])
        await api.settler.flush()

    def usage_command(*options: str) -> object:
        arguments = ["usage", "--data-dir", str(settings.data_dir), "--json", *options]
        found = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return json.loads(found.stdout)

    today = time.strftime("%Y-%m-%d", time.gmtime())
    sums = {"prompt_tokens": 3 * PROMPT_TOKENS, "completion_tokens": 6, "requests": 3}
    assert await asyncio.to_thread(usage_command) == [{"key": "", "model": MODEL, "day": today, **sums}]
    by_user = await asyncio.to_thread(usage_command, "--by", "user,state", "--since", today)
    assert [(row["user"], row["state"], row["requests"]) for row in by_user] == [
        ("ann", "completed", 2),
        ("bob", "completed", 1),
    ]
    for nothing in (["--until", today], ["--tenant", "other"], ["--key", "k"], ["--model", "m"], ["--user", "cid"]):
        assert await asyncio.to_thread(usage_command, *nothing) == []
    shown = await asyncio.to_thread(CliRunner().invoke, app, ["usage", "--data-dir", str(settings.data_dir)])
    assert all(word in shown.stdout for word in (MODEL, today, "prompt tokens"))
    wrong = await asyncio.to_thread(CliRunner().invoke, app, ["usage", "--by", "week"])
    assert "week" in str(wrong.exception)
