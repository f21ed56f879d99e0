"""The native API: submit, see, read from any point, cancel."""

from __future__ import annotations

import json

import httpx
import pytest

from shared.backend import Backend
from shared.errors import EngineFailed
from shared.protocol import ErrorInfo, PriorityClass, RequestState, Token, TokenLogprobs
from tests.support.api_server import frames
from tests.support.fakes import MODEL
from tests.support.scripted_worker import Job, ScriptedWorker
from tests.support.waiting import LIMIT_S

QUEUES = ("redis", "kafka")


@pytest.fixture
async def http(api: str):
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as opened:
        yield opened


async def submit(http: httpx.AsyncClient, **fields: object) -> str:
    response = await http.post("/v1/jobs", json={"model": MODEL, "prompt": "hi", **fields})
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/jobs/{response.json()['id']}"
    return response.json()["id"]


async def read(http: httpx.AsyncClient, job: str, **given) -> list[dict[str, str]]:
    async with http.stream("GET", f"/v1/jobs/{job}/events", **given) as response:
        assert response.status_code == 200
        return [frame async for frame in frames(response)]


async def test_life(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """Given two jobs, if one is run, expect position, state, times, usage and result to tell it."""
    first = await submit(http, messages=[{"role": "user", "content": "hi"}], prompt=None)
    second = await submit(http, prompt=[1, 2, 3], priority="standard", max_tokens=4)
    assert (await http.get(f"/v1/jobs/{first}")).json()["position"] == 1
    waiting = (await http.get(f"/v1/jobs/{second}")).json()
    assert (waiting["state"], waiting["position"], waiting["choices"]) == ("queued", 2, None)
    assert waiting["estimated_wait"] is None, "no rate is known yet"
    job = await worker.take()
    await job.say("Hello")
    running = (await http.get(f"/v1/jobs/{first}")).json()
    assert (running["state"], running["position"], running["usage"]["completion_tokens"]) == ("running", None, 1)
    await job.end()
    done = (await http.get(f"/v1/jobs/{first}")).json()
    assert done["state"] == "completed"
    assert done["choices"] == [{"index": 0, "text": "Hello", "finish_reason": None}]
    assert done["usage"] == {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    assert done["created_at"] <= done["started_at"] <= done["first_token_at"] <= done["finished_at"]
    request = await worker.answer("x")
    assert request.prompt == (1, 2, 3)
    assert request.priority is PriorityClass.STANDARD


async def test_logprobs(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """Given logprobs asked for, Expect them with each token and in the result; not given, nowhere."""
    job_id = await submit(http, logprobs=1)
    job = await worker.take()
    assert job.request.params.logprobs == 1
    await job.write(Token(0, 7, "a", None, TokenLogprobs(-0.5, ((7, -0.5, "a"),), "a")))
    await job.end()
    told = {"text": "a", "logprob": -0.5, "top": [{"id": 7, "text": "a", "logprob": -0.5}]}
    first, _ = await read(http, job_id)
    assert json.loads(first["data"])["tokens"] == [{"choice": 0, "id": 7, "text": "a", "logprobs": told}]
    assert (await http.get(f"/v1/jobs/{job_id}")).json()["choices"][0]["logprobs"] == [told]


async def test_resume_at_every_seq(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """Given an answer of appends of 1, 3 and 2 tokens, if it is read from any seq, expect exactly the rest."""
    job_id = await submit(http)
    job = await worker.take()
    await job.say("0")
    await job.write(*(Token(0, i, str(i)) for i in (1, 2, 3)))
    await job.write(*(Token(0, i, str(i)) for i in (4, 5)))
    await job.end()
    for after in range(-1, 6):
        for given in ({"params": {"after": after}}, {"headers": {"last-event-id": str(after)}}):
            found = await read(http, job_id, **given)
            tokens = [token["text"] for f in found[:-1] for token in json.loads(f["data"])["tokens"]]
            assert tokens == [str(i) for i in range(after + 1, 6)]
            seqs = [json.loads(f["data"])["seq"] for f in found[:-1]]
            assert seqs[:1] == ([after + 1] if after < 5 else [])
            assert (found[-1]["event"], found[-1]["id"]) == ("done", "6")
    both = await read(http, job_id, params={"after": -1}, headers={"last-event-id": "5"})
    assert [frame["event"] for frame in both] == ["done"], "the header is newer than the URL"
    ended = await http.get(f"/v1/jobs/{job_id}/events?after=6")
    assert ended.status_code == 204


@pytest.mark.parametrize("value", ["x", "-2", "1.5", "", "9" * 40, "٣"])
async def test_bad_resume_point(http: httpx.AsyncClient, value: str) -> None:
    """Given a job, if it is read from what is no seq, expect a 400 that names the parameter."""
    job_id = await submit(http)
    response = await http.get(f"/v1/jobs/{job_id}/events", params={"after": value})
    assert response.status_code == 400
    assert response.json()["param"] == "after"


async def test_two_readers_and_none(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """Given two readers, if one leaves, expect the other and the job to go on."""
    job_id = await submit(http)
    job = await worker.take()
    path = f"/v1/jobs/{job_id}/events"
    async with http.stream("GET", path) as staying, http.stream("GET", path) as leaving:
        await job.say("a")
        stay, leave = frames(staying), frames(leaving)
        assert (await anext(stay))["data"] == (await anext(leave))["data"]
        await leaving.aclose()
        assert await job.say("b")
        assert json.loads((await anext(stay))["data"])["tokens"][0]["text"] == "b"
    assert await job.say("c"), "nobody reads, and it goes on"
    assert await job.end()
    assert len(await read(http, job_id)) == 4


async def test_after_beyond_the_log_waits(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """Given a reader ahead of the log, if the log catches up, expect only what is after."""
    job_id = await submit(http)
    job = await worker.take()
    async with http.stream("GET", f"/v1/jobs/{job_id}/events?after=1") as response:
        await job.say("0")
        await job.say("1")
        await job.say("2")
        assert (await anext(frames(response)))["id"] == "2"


async def test_cancel_waiting(http: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend) -> None:
    """Given a waiting job, if it is cancelled twice, expect it out of the queue and the same answer."""
    job_id = await submit(http)
    for _ in range(2):
        response = await http.delete(f"/v1/jobs/{job_id}")
        assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    assert (await backend.transport.depth(MODEL)).waiting == 0
    assert [frame["event"] for frame in await read(http, job_id)] == ["cancelled"]


async def test_cancel_running(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """Given a running job with a reader, if it is cancelled, expect the reader told and the worker fenced."""
    job_id = await submit(http)
    job: Job = await worker.take()
    async with http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        await job.say("a")
        stream = frames(response)
        assert (await anext(stream))["event"] == "token"
        assert (await http.delete(f"/v1/jobs/{job_id}")).status_code == 200
        assert (await anext(stream))["event"] == "cancelled"
    assert not await job.say("b")


async def test_failed_job(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """Given a job that fails, expect its error in the stream and in its description."""
    job_id = await submit(http)
    job = await worker.take()
    await job.end(RequestState.FAILED, ErrorInfo.from_error(EngineFailed("it broke")))
    (frame,) = await read(http, job_id)
    assert frame["event"] == "error"
    assert json.loads(frame["data"])["error"]["code"] == "engine_failed"
    assert (await http.get(f"/v1/jobs/{job_id}")).json()["error"]["message"] == "it broke"


@pytest.mark.parametrize("job_id", ["req_" + "0" * 32, "nonsense", "req_..%2f..", "x" * 500])
async def test_unknown_job(client: httpx.AsyncClient, job_id: str) -> None:
    """Given no such job, expect 404 as a problem on every route."""
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        response = await client.request(method, f"/v1/jobs/{job_id}{path}")
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"


async def test_other_tenants_job(client: httpx.AsyncClient, backend: Backend) -> None:
    """Given somebody else's job, expect 404."""
    job_id = (await client.post("/v1/jobs", json={"model": MODEL, "prompt": "hi"})).json()["id"]
    await backend.redis.hset(f"hr:{{{job_id}}}:state", "tenant", "other")
    assert (await client.get(f"/v1/jobs/{job_id}")).status_code == 404


async def test_client_id_and_reading_disconnect(http: httpx.AsyncClient) -> None:
    """Given a sane x-request-id, expect it back; given a wild one, another."""
    assert (await http.get("/health", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    wild = (await http.get("/health", headers={"x-request-id": "a b"})).headers["x-request-id"]
    assert wild != "a b"
    assert len(wild) == 32


async def test_submit_needs_one_input(client: httpx.AsyncClient) -> None:
    """Given both or neither of messages and prompt, expect a 400 problem."""
    messages = [{"role": "user", "content": "x"}]
    for body in ({"model": MODEL}, {"model": MODEL, "prompt": "x", "messages": messages}):
        response = await client.post("/v1/jobs", json=body)
        assert (response.status_code, response.json()["param"]) == (400, "messages")
