"""Idempotency-Key: one execution, however often a request is sent and whoever dies in the midst of it."""

from __future__ import annotations

import asyncio
import json

import httpx
import msgspec
import pytest

from producer_api.admission.gateway import STALE_KEY_AGE_S
from producer_api.admission.idempotency import IdempotencyKey, Identity
from producer_api.schemas.jobs import JobSubmission
from shared.backend import Backend
from shared.protocol import RequestState
from shared.settings import Settings
from tests.producer_api.conftest import Job, ScriptedWorker, chat, serving
from tests.support.fakes import MODEL
from tests.support.waiting import LIMIT_S

QUEUES = ("redis", "kafka")

BODY = {"model": MODEL, "prompt": "hi"}
KEYED = {"idempotency-key": "k1"}


@pytest.fixture
async def http(api: str):
    async with httpx.AsyncClient(
        base_url=api, timeout=LIMIT_S, limits=httpx.Limits(max_connections=None)
    ) as opened:
        yield opened


async def test_a_hundred_at_once_run_once(
    http: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend
) -> None:
    """Given one key, if 100 clients send it at once, Expect one job in the queue, and its answer for all."""
    sent = await asyncio.gather(*[http.post("/v1/jobs", json=BODY, headers=KEYED) for _ in range(100)])
    assert {response.status_code for response in sent} == {202}
    assert len({response.json()["id"] for response in sent}) == 1
    assert sum("idempotent-replayed" not in response.headers for response in sent) == 1
    assert (await backend.transport.depth(MODEL)).waiting == 1
    await worker.answer("a")
    again = await http.post("/v1/jobs", json=BODY, headers=KEYED)
    assert (again.json()["state"], again.headers["idempotent-replayed"]) == ("completed", "true")
    assert again.json()["choices"][0]["text"] == "a"


async def test_chats_join_running_and_finished(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """Given a chat under a key, if it is sent again while it runs and after it, Expect the same bytes."""
    for path, body in (("/v1/chat/completions", chat()), ("/v1/chat/completions/stream", chat(seed=3))):
        headers = {"idempotency-key": path}
        asked = [asyncio.create_task(http.post(path, json=body, headers=headers)) for _ in range(20)]
        await worker.answer("a", "b")
        answers = [await response for response in asked]
        answers.append(await http.post(path, json=body, headers=headers))
        assert {response.status_code for response in answers} == {200}
        assert len({response.content for response in answers}) == 1
        assert answers[-1].headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/jobs", {**BODY, "seed": 1}), ("/v1/chat/completions", chat()), ("/v1/jobs", {**BODY, "prompt": "ho"})],
)
async def test_another_body_is_refused(http: httpx.AsyncClient, path: str, body: dict) -> None:
    """Given a key in use, if another request comes under it, Expect 422; for the same in other words, the job."""
    first = await http.post("/v1/jobs", json=BODY, headers=KEYED)
    refused = await http.post(path, json=body, headers=KEYED)
    assert refused.status_code == 422
    assert "idempotency_key_reused" in refused.text
    same = await http.post("/v1/jobs", json={"prompt": "hi", "seed": None, "model": MODEL}, headers=KEYED)
    assert same.json()["id"] == first.json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "é".encode(), "a\tb"])
async def test_a_key_that_is_none(http: httpx.AsyncClient, key: str | bytes) -> None:
    for path, body in (("/v1/jobs", BODY), ("/v1/chat/completions", chat())):
        response = await http.post(path, json=body, headers={"idempotency-key": key})
        assert response.status_code == 400
        assert "Idempotency-Key" in response.text


async def test_a_refusal_gives_the_key_back(
    http: httpx.AsyncClient, settings: Settings, worker: ScriptedWorker, backend: Backend
) -> None:
    """Given a key, if its request is refused, Expect it free for another: unknown model, full queue."""
    assert (await http.post("/v1/jobs", json={**BODY, "model": "nobody"}, headers=KEYED)).status_code == 404
    assert (await http.post("/v1/jobs", json=BODY, headers=KEYED)).status_code == 202
    full = Backend.open(settings.model_copy(update={"queue_depth": 1}))
    async with serving(settings, full) as url, httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as other:
        headers = {"idempotency-key": "k2"}
        assert (await other.post("/v1/jobs", json=BODY, headers=headers)).status_code == 503
        await worker.answer("x")
        assert (await other.post("/v1/jobs", json={**BODY, "seed": 5}, headers=headers)).status_code == 202
    await full.close()


async def test_keys_are_the_tenants_own(http: httpx.AsyncClient, backend: Backend) -> None:
    """Given the same key of another tenant, Expect another name in the store; neither shows the key."""
    await http.post("/v1/jobs", json=BODY, headers={"idempotency-key": "canary-71c"})
    mine, theirs = (
        IdempotencyKey.from_header(["canary-71c"], tenant=tenant, kind="job", body="{}")
        for tenant in ("default", "other")
    )
    assert mine is not None
    assert theirs is not None
    names = [name.decode() for name in await backend.redis.keys("hr:hold:idempotency:*")]
    assert names == [f"hr:hold:{mine.name}"]
    assert mine.name != theirs.name
    assert mine.fingerprint != theirs.fingerprint
    assert "canary" not in mine.name


class Died:
    """A replica that took a key for BODY and died before it came to the queue."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        body = JobSubmission(**BODY).model_dump_json()
        key = IdempotencyKey.from_header(["k1"], tenant="default", kind="job", body=body)
        assert key is not None
        self.key = key

    async def hold(self, age: float = 0.0) -> Identity:
        identity = Identity.new(await self.backend.token_log.now() - age, 77, self.key)
        await self.backend.holds.hold(self.key.name, msgspec.json.encode(identity), 60)
        return identity


@pytest.mark.parametrize("came_to", ["the key", "the log", "the queue"])
async def test_whoever_finds_it_finishes_an_admission(
    http: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend, came_to: str
) -> None:
    """Given a replica that died on the way to the queue, if the key comes again, Expect that request, run."""
    left = await Died(backend).hold()
    draft = left.complete(JobSubmission(**BODY).to_request("default"), None)
    if came_to != "the key":
        await backend.token_log.create(draft)
    if came_to == "the queue":
        await backend.transport.publish(draft)
    sent = await asyncio.gather(*[http.post("/v1/jobs", json=BODY, headers=KEYED) for _ in range(3)])
    assert {response.json()["id"] for response in sent} == {left.id}
    request = await worker.answer("x")
    assert (request.id, request.params.seed, request.created_at) == (left.id, 77, left.created_at)
    record = await backend.token_log.record(left.id)
    assert record is not None
    assert record.state is RequestState.COMPLETED


async def test_a_key_that_outlived_its_answer_begins_anew(
    http: httpx.AsyncClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a key whose answer has expired, Expect a new request at once."""
    monkeypatch.setattr("producer_api.admission.gateway.KEY_RETRY_DELAYS_S", (10 * LIMIT_S,) * 2)
    old = await Died(backend).hold(age=STALE_KEY_AGE_S + 1)
    async with asyncio.timeout(LIMIT_S):
        new = (await http.post("/v1/jobs", json=BODY, headers=KEYED)).json()["id"]
    assert new != old.id


async def test_a_stream_goes_on_at_every_frame_on_another_replica(
    settings: Settings, backend: Backend, http: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    """Given a keyed stream of appends of 1, 3 and 2 tokens, if it is resumed after any, Expect the rest."""
    body = chat(n=2, stream=True, stream_options={"include_usage": True})
    asked = asyncio.create_task(http.post("/v1/chat/completions", json=body, headers=KEYED))
    job = await worker.take()
    for texts in (["a"], ["b", "c", "d"], ["e", "f"]):
        await job.say_all(texts)
    await job.end()
    whole = (await asked).content
    ids = [int(line[4:]) for line in whole.split(b"\n") if line.startswith(b"id: ")]
    assert ids == [0, 3, 5, 6]
    second = Backend.open(settings)
    async with serving(settings, second) as url, httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as other:
        for seq in ids:
            headers = {**KEYED, "last-event-id": str(seq)}
            rest = await other.post("/v1/chat/completions", json=body, headers=headers)
            assert whole.split(b"id: %d\n" % seq)[1].split(b"\n\n", 1)[1] == rest.content
            assert rest.status_code == (204 if seq == ids[-1] else 200)
        inside = await other.post("/v1/chat/completions", json=body, headers={**KEYED, "last-event-id": "1"})
        chunks = [json.loads(line[6:]) for line in inside.text.split("\n") if line.startswith("data: {")]
        text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
        assert text == "cdef"
        assert "role" not in inside.text
    await second.close()


async def test_leaving_a_keyed_stream_cancels_nothing(
    http: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend
) -> None:
    """Given a keyed stream, if its client leaves, Expect the answer to go on, and the rest for whoever resumes."""
    path = "/v1/chat/completions/stream"
    speaking = asyncio.create_task(_say_first(worker))
    async with http.stream("POST", path, json=chat(), headers=KEYED) as response:
        await anext(response.aiter_bytes())
    job = await speaking
    again = asyncio.create_task(http.post(path, json=chat(), headers={**KEYED, "last-event-id": "0"}))
    assert await job.say("b")
    assert await job.end()
    assert '"content":"b"' in (await again).text
    assert (await again).text.endswith("data: [DONE]\n\n")


async def _say_first(worker: ScriptedWorker) -> Job:
    job = await worker.take()
    await job.say("a")
    return job


async def test_what_cannot_be_resumed_is_refused(http: httpx.AsyncClient, backend: Backend) -> None:
    """Given a Last-Event-ID without key, without stream, or of an answer that is no more, Expect 400 and 404."""
    path, seen = "/v1/chat/completions", {"last-event-id": "3"}
    assert (await http.post(path, json=chat(stream=True), headers=seen)).status_code == 400
    assert (await http.post(path, json=chat(), headers={**KEYED, **seen})).status_code == 400
    assert (await http.post(path, json=chat(stream=True), headers={**KEYED, **seen})).status_code == 404
    assert await backend.redis.keys("hr:hold:idempotency:*") == []
    assert (await backend.transport.depth(MODEL)).waiting == 0
