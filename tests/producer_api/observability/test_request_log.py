"""Request log: one line per request, whatever its outcome, without prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from shared.backend import Backend
from shared.settings import Settings
from tests.support.api_server import chat
from tests.support.fakes import MODEL
from tests.support.metered import changed, metered
from tests.support.scripted_worker import PROMPT_TOKENS, Job, ScriptedWorker
from tests.support.waiting import LIMIT_S

JOB = {"model": MODEL, "prompt": "hi", "max_tokens": 8}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "mine"}
CANARY = "canary-71c"

Lines = list[dict[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    with structlog.testing.capture_logs() as found:
        yield found


def completion_lines(lines: Lines, job: str) -> Lines:
    """Return the lines about a job, without that of its submission."""
    return [line for line in lines if line.get("job_id") == job and line.get("status") != 202]


async def test_a_stream_is_logged_at_its_end(
    settings: Settings, backend: Backend, worker: ScriptedWorker, lines: Lines
) -> None:
    async with metered(settings, backend) as api:
        going = asyncio.create_task(api.http.post("/v1/chat/completions/stream", json=chat(), headers=HEADERS))
        job = (await worker.answer("a", "b")).id
        await going
        await api.settled()

    [line] = completion_lines(lines, job)
    assert line["event"] == "request"
    assert line.pop("queue_seconds") > 0  # by Redis' clock; the others are by the process's
    assert 0 < line.pop("first_token_seconds") <= line.pop("seconds")
    expected = {
        "http_request_id": "mine",
        "trace_id": TRACE,
        "tenant": "default",
        "model": MODEL,
        "route": "/v1/chat/completions/stream",
        "status": 200,
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": 2,
        "finish": "stop",
    }
    assert line.items() >= expected.items()


async def test_the_end_of_a_job_is_logged_once(
    settings: Settings, backend: Backend, worker: ScriptedWorker, lines: Lines
) -> None:
    async with metered(settings, backend) as api, metered(settings, backend) as other:
        job = (await api.http.post("/v1/jobs", json=JOB, headers=HEADERS)).json()["id"]
        assert [line["status"] for line in lines if line.get("job_id") == job] == [202]
        await worker.answer("a", "b")
        await asyncio.gather(api.settled(), other.sweep(), api.sweep())

    [line] = completion_lines(lines, job)
    expected = {
        "event": "request_ended",
        "http_request_id": "mine",
        "trace_id": TRACE,
        "tenant": "default",
        "model": MODEL,
        "state": "completed",
        "finish": "stop",
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": 2,
    }
    assert line.items() >= expected.items()
    assert 0 <= line["queue_seconds"] <= line["first_token_seconds"] <= line["seconds"]


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_disconnect_is_logged(
    settings: Settings, backend: Backend, worker: ScriptedWorker, lines: Lines, key: str | None
) -> None:
    """There is one line if the disconnect ends the answer, and a second one at the end of a keyed answer."""
    headers = {} if key is None else {"idempotency-key": key}
    async with metered(settings, backend) as api:
        working = asyncio.create_task(begin(worker))
        async with api.http.stream("POST", "/v1/chat/completions/stream", json=chat(), headers=headers) as response:
            await anext(response.aiter_lines())
        work = await working
        await disconnected(lines, work.request.id)
        if key is not None:
            await work.end()
        await api.settled()

    seen = [
        (line["event"], line.get("status"), line.get("finish")) for line in completion_lines(lines, work.request.id)
    ]
    if key is None:
        assert seen == [("request", 499, "abandoned")]
    else:
        assert seen == [("request", 499, None), ("request_ended", None, None)]


async def begin(worker: ScriptedWorker) -> Job:
    work = await worker.take()
    await work.say("a")
    return work


async def disconnected(lines: Lines, job: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not completion_lines(lines, job):
            await asyncio.sleep(0.01)


async def test_another_process_logs_the_chat_of_a_dead_one(
    settings: Settings, backend: Backend, worker: ScriptedWorker, lines: Lines
) -> None:
    async with metered(settings, backend, settling=False) as dead:
        going = asyncio.create_task(dead.http.post("/v1/chat/completions", json=chat()))
        work = await worker.take()
        await work.end()
        await going
        async with metered(settings, backend, settling=False) as other:
            lines.clear()  # the dead process never wrote its line
            await other.sweep()
    [line] = completion_lines(lines, work.request.id)
    assert (line["event"], line["state"]) == ("request_ended", "completed")


@pytest.mark.parametrize(("most", "shown"), [(0, None), (14, "user: canary-7"), (1000, f"user: {CANARY}")])
async def test_prompts_are_logged_only_if_a_setting_asks(
    settings: Settings, backend: Backend, worker: ScriptedWorker, lines: Lines, most: int, shown: str | None
) -> None:
    messages = [{"role": "user", "content": CANARY}]
    async with metered(changed(settings, log_prompts=most), backend) as api:
        job = (await api.http.post("/v1/jobs", json={"model": MODEL, "messages": messages})).json()["id"]
        await worker.answer("a")
        await api.settled()
    [line] = [line for line in lines if line.get("job_id") == job and line.get("status") == 202]
    assert line.get("prompt") == shown
    assert CANARY not in str([each for each in lines if each is not line])


@pytest.mark.parametrize(
    "given", ["", "00-xyz", f"00-{TRACE}-00f067aa0ba902b7", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{TRACE}\n"]
)
async def test_an_invalid_traceparent_is_not_logged(
    settings: Settings, backend: Backend, worker: ScriptedWorker, lines: Lines, given: str
) -> None:
    async with metered(settings, backend, settling=False) as api:
        await api.http.get("/health", headers={"traceparent": given.strip()})
    [line] = [line for line in lines if line.get("route") == "/health"]
    assert "trace_id" not in line
