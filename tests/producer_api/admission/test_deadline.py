"""Deadlines of requests."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI

from producer_api.auth.principal import ANONYMOUS
from shared.backend import Backend
from shared.errors import Unavailable
from shared.protocol import Token
from shared.token_log.interface import OVERDUE
from tests.support.api_server import chat, frames
from tests.support.fakes import MODEL, make_request
from tests.support.loop_clock import stopped_clock
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S


async def test_a_timeout_becomes_a_deadline_by_the_servers_clock(
    client: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend
) -> None:
    """The deadline is in the request and in the job; a request without a timeout has no deadline."""
    now = await backend.token_log.now()
    for fields, least, most in (
        ({"timeout": 60}, now + 60, now + 60 + LIMIT_S),
        ({"deadline": now + 60}, now + 60, now + 60),
    ):
        job = (await client.post("/v1/jobs", json={"model": MODEL, "prompt": "x", **fields})).json()
        request = (await worker.take()).request
        assert least <= request.deadline <= most
        assert job["deadline"] == request.deadline
        seen = (await client.get(f"/v1/jobs/{job['id']}")).json()["deadline"]
        assert seen == pytest.approx(request.deadline, abs=1e-5)
    asked = [asyncio.create_task(client.post("/v1/chat/completions", json=chat(**f))) for f in ({"timeout": 9}, {})]
    deadlines = [(await worker.answer("x")).deadline for _ in asked]
    await asyncio.gather(*asked)
    assert {deadline is None for deadline in deadlines} == {False, True}


async def test_a_client_past_its_deadline_gets_a_504(api: str, worker: ScriptedWorker, backend: Backend) -> None:
    """The SDK does not retry the 504, whether or not the request is streamed."""
    async with AsyncOpenAI(base_url=f"{api}/v1", api_key="none", max_retries=3) as sdk:
        for stream in (False, True):
            asked = asyncio.create_task(
                sdk.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": "x"}],
                    stream=stream,
                    extra_body={"timeout": 0.05},
                )
            )
            delivery = await worker.pull()
            while await backend.token_log.now() < delivery.request.deadline:
                pass
            assert await backend.token_log.acquire([delivery.request.id], "w1") == [None]
            with pytest.raises(openai.InternalServerError) as late:
                await asked
            assert late.value.status_code == 504
            assert late.value.code == "deadline_exceeded"
            assert late.value.response.headers["x-should-retry"] == "false"
    assert (await backend.transport.depth(MODEL)).waiting == 0


async def test_a_stream_ends_with_the_deadline_error(api: str, worker: ScriptedWorker, backend: Backend) -> None:
    """At the deadline each stream ends with an error event, and the job has failed."""
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
        speaking = asyncio.create_task(worker.take())
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=chat(stream=True, timeout=50)))
        chat_job = await speaking
        await chat_job.write(Token(0, 1, "a"))
        await backend.token_log.close(chat_job.request.id, OVERDUE)
        answer = await asked
        assert answer.status_code == 200
        assert json.loads(answer.text.split("data: ")[-1])["error"]["code"] == "deadline_exceeded"
        assert "[DONE]" not in answer.text

        job_id = (await http.post("/v1/jobs", json={"model": MODEL, "prompt": "x", "timeout": 50})).json()["id"]
        async with http.stream("GET", f"/v1/jobs/{job_id}/events") as events:
            await backend.token_log.close(job_id, OVERDUE)
            [frame] = [frame async for frame in frames(events)]
        assert (frame["event"], json.loads(frame["data"])["error"]["code"]) == ("error", "deadline_exceeded")
        job = (await http.get(f"/v1/jobs/{job_id}")).json()
        assert (job["state"], job["error"]["code"]) == ("failed", "deadline_exceeded")


async def test_admission_waits_for_redis_up_to_a_deadline(
    app: FastAPI, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it the request is refused, even if each call to Redis is still within its own limit."""
    await app.state.context.catalog.snapshot()
    monkeypatch.setattr(backend.token_log, "now", asyncio.Event().wait)
    with stopped_clock() as clock:
        submit = app.state.context.gateway.submit(make_request(), principal=ANONYMOUS, seed=None)
        submitting = asyncio.create_task(submit)
        await clock.advance(0.0)
        await clock.advance(LIMIT_S - 1.0)
        assert not submitting.done()
        await clock.advance(1.0)
        with pytest.raises(Unavailable, match="Redis did not answer in time"):
            await submitting
