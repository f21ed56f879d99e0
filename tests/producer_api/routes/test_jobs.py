"""The native API: submit a job, get it, read its tokens from any point, cancel it."""

from __future__ import annotations

import json

import httpx
import pytest

from shared.backend import Backend
from shared.errors import EngineFailed
from shared.protocol import ErrorInfo, PriorityClass, RequestState, Token, TokenLogprobs
from tests.support.api_server import frames
from tests.support.fakes import MODEL
from tests.support.scripted_worker import CACHED_TOKENS, Job, ScriptedWorker

QUEUES = ("redis", "kafka")


async def submit(http: httpx.AsyncClient, **fields: object) -> str:
    response = await http.post("/v1/jobs", json={"model": MODEL, "prompt": "hi", **fields})
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/jobs/{response.json()['id']}"
    return response.json()["id"]


async def read(http: httpx.AsyncClient, job: str, **given) -> list[dict[str, str]]:
    async with http.stream("GET", f"/v1/jobs/{job}/events", **given) as response:
        assert response.status_code == 200
        return [frame async for frame in frames(response)]


async def test_a_job_reports_position_state_usage_and_result(
    http: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
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
    assert done["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 1,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
    }
    assert done["created_at"] <= done["started_at"] <= done["first_token_at"] <= done["finished_at"]
    request = await worker.answer("x")
    assert request.prompt == (1, 2, 3)
    assert request.priority is PriorityClass.STANDARD


async def test_logprobs_appear_only_if_requested(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    job_id = await submit(http, logprobs=1)
    job = await worker.take()
    assert job.request.params.logprobs == 1
    await job.write(Token(0, 7, "a", None, TokenLogprobs(-0.5, ((7, -0.5, "a"),), "a")))
    await job.end()
    told = {"text": "a", "logprob": -0.5, "top": [{"id": 7, "text": "a", "logprob": -0.5}]}
    first, _ = await read(http, job_id)
    assert json.loads(first["data"])["tokens"] == [{"choice": 0, "id": 7, "text": "a", "logprobs": told}]
    assert (await http.get(f"/v1/jobs/{job_id}")).json()["choices"][0]["logprobs"] == [told]


async def test_token_ids_and_scores_of_the_prompt(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """They are in the result, and in the event of the first token, or in the last one if there is no token."""
    job_id = await submit(http, prompt_logprobs=0, return_token_ids=True)
    job = await worker.take()
    assert (job.request.params.prompt_logprobs, job.request.params.return_token_ids) == (0, True)
    prompt = (Token(0, 1, ""), Token(0, 2, "", None, TokenLogprobs(-2.0, (), "i", {}, 3)))
    await job.write(Token(0, 7, "a"), prompt=prompt)
    await job.say("b")
    await job.end()
    scores = [None, {"2": {"logprob": -2.0, "rank": 3, "decoded_token": "i"}}]
    first, second, _ = (json.loads(frame["data"]) for frame in await read(http, job_id))
    assert (first["prompt_token_ids"], first["prompt_logprobs"]) == ([1, 2], scores)
    assert second.keys() == {"seq", "tokens"}
    found = (await http.get(f"/v1/jobs/{job_id}")).json()
    assert (found["prompt_token_ids"], found["prompt_logprobs"]) == ([1, 2], scores)
    assert found["choices"][0]["token_ids"] == [7, 1]
    job_id = await submit(http, prompt_logprobs=0, max_tokens=0)
    await (await worker.take()).end(prompt=prompt)
    [end] = (json.loads(frame["data"]) for frame in await read(http, job_id))
    assert (end["prompt_token_ids"], end["prompt_logprobs"]) == ([1, 2], scores)


async def test_events_resume_at_every_seq(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
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
async def test_a_wrong_resume_point_is_400(http: httpx.AsyncClient, value: str) -> None:
    job_id = await submit(http)
    response = await http.get(f"/v1/jobs/{job_id}/events", params={"after": value})
    assert response.status_code == 400
    assert response.json()["param"] == "after"


async def test_a_job_continues_when_readers_disconnect(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
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
    assert await job.say("c"), "the job continues without readers"
    assert await job.end()
    assert len(await read(http, job_id)) == 4


async def test_a_reader_ahead_of_the_log_waits(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    job_id = await submit(http)
    job = await worker.take()
    async with http.stream("GET", f"/v1/jobs/{job_id}/events?after=1") as response:
        await job.say("0")
        await job.say("1")
        await job.say("2")
        assert (await anext(frames(response)))["id"] == "2"


async def test_cancelling_a_queued_job_twice_is_idempotent(
    http: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend
) -> None:
    job_id = await submit(http)
    for _ in range(2):
        response = await http.delete(f"/v1/jobs/{job_id}")
        assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    assert (await backend.transport.depth(MODEL)).waiting == 0
    assert [frame["event"] for frame in await read(http, job_id)] == ["cancelled"]


async def test_cancelling_a_running_job_fences_its_worker(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    job_id = await submit(http)
    job: Job = await worker.take()
    async with http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        await job.say("a")
        stream = frames(response)
        assert (await anext(stream))["event"] == "token"
        assert (await http.delete(f"/v1/jobs/{job_id}")).status_code == 200
        assert (await anext(stream))["event"] == "cancelled"
    assert not await job.say("b")


async def test_a_failed_job_has_its_error_in_stream_and_status(
    http: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    job_id = await submit(http)
    job = await worker.take()
    await job.end(RequestState.FAILED, ErrorInfo.from_error(EngineFailed("it broke")))
    (frame,) = await read(http, job_id)
    assert frame["event"] == "error"
    assert json.loads(frame["data"])["error"]["code"] == "engine_failed"
    assert (await http.get(f"/v1/jobs/{job_id}")).json()["error"]["message"] == "it broke"


@pytest.mark.parametrize("job_id", ["req_" + "0" * 32, "nonsense", "req_..%2f..", "x" * 500])
async def test_an_unknown_job_is_a_404_problem(client: httpx.AsyncClient, job_id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        response = await client.request(method, f"/v1/jobs/{job_id}{path}")
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"


async def test_another_tenants_job_is_404(client: httpx.AsyncClient, backend: Backend) -> None:
    job_id = (await client.post("/v1/jobs", json={"model": MODEL, "prompt": "hi"})).json()["id"]
    await backend.redis.hset(f"hr:{{{job_id}}}:state", "tenant", "other")
    assert (await client.get(f"/v1/jobs/{job_id}")).status_code == 404


async def test_a_valid_request_id_is_returned(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    wild = (await http.get("/health", headers={"x-request-id": "a b"})).headers["x-request-id"]
    assert wild != "a b"
    assert len(wild) == 32


async def test_a_job_needs_either_messages_or_a_prompt(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "x"}]
    for body in ({"model": MODEL}, {"model": MODEL, "prompt": "x", "messages": messages}):
        response = await client.post("/v1/jobs", json=body)
        assert (response.status_code, response.json()["param"]) == (400, "messages")
