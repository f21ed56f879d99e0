"""Idempotency-Key: a request runs once, however often it is sent and whichever process dies."""

from __future__ import annotations

import asyncio
import json

import httpx
import msgspec
import pytest

from producer_api.admission.gateway import STALE_KEY_AGE_S, Admission, Gateway
from producer_api.admission.idempotency import IdempotencyKey, Identity
from producer_api.background.sweeper import LOST
from producer_api.schemas.jobs import JobSubmission
from shared.backend import Backend
from shared.errors import InvalidRequest
from shared.protocol import RequestState
from shared.settings import Settings
from tests.support.api_server import chat, serving
from tests.support.fakes import MODEL
from tests.support.scripted_worker import Job, ScriptedWorker
from tests.support.waiting import LIMIT_S

QUEUES = ("redis", "kafka")

BODY = {"model": MODEL, "prompt": "hi"}
RESPONSE = {"model": MODEL, "input": "hi", "background": True}
KEYED = {"idempotency-key": "k1"}


@pytest.fixture
async def http(api: str):
    async with httpx.AsyncClient(
        base_url=api, timeout=LIMIT_S, limits=httpx.Limits(max_connections=None)
    ) as opened:
        yield opened


async def test_a_hundred_concurrent_requests_run_once(
    http: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend
) -> None:
    """100 clients that send one key at once make one job, and all get its answer."""
    sent = await asyncio.gather(*[http.post("/v1/jobs", json=BODY, headers=KEYED) for _ in range(100)])
    assert {response.status_code for response in sent} == {202}
    assert len({response.json()["id"] for response in sent}) == 1
    assert sum("idempotent-replayed" not in response.headers for response in sent) == 1
    assert (await backend.transport.depth(MODEL)).waiting == 1
    await worker.answer("a")
    again = await http.post("/v1/jobs", json=BODY, headers=KEYED)
    assert (again.json()["state"], again.headers["idempotent-replayed"]) == ("completed", "true")
    assert again.json()["choices"][0]["text"] == "a"


async def test_chats_join_running_and_finished_ones(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """A chat that is sent again while it runs, or afterwards, gets the same bytes."""
    for path, body in (("/v1/chat/completions", chat()), ("/v1/chat/completions/stream", chat(seed=3))):
        headers = {"idempotency-key": path}
        asked = [asyncio.create_task(http.post(path, json=body, headers=headers)) for _ in range(20)]
        await worker.answer("a", "b")
        answers = [await response for response in asked]
        answers.append(await http.post(path, json=body, headers=headers))
        assert {response.status_code for response in answers} == {200}
        assert len({response.content for response in answers}) == 1
        assert answers[-1].headers["idempotent-replayed"] == "true"


def name_of(value: str) -> str:
    key = IdempotencyKey.from_header([value], tenant="t", kind="k", body="b")
    assert key is not None
    return key.name


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"x"', "x"),
        (' "x" ', "x"),
        ('"8e03978e-40d5-43e8-bc93-6894a57f9324"', "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (r'"a\"b\\c"', 'a"b\\c'),
        ('"x";a=1;b; c="d\\"";e=?1;f=:aGk=:;g=tok/en;h=-1.5;i=@12', "x"),
        ('"' + "x" * 255 + '"', "x" * 255),
        ('a"b\\', 'a"b\\'),
    ],
)
def test_quoted_and_bare_keys_are_one(value: str, key: str) -> None:
    assert name_of(value) == name_of(key)
    assert name_of('"a b"') != name_of("ab")


MALFORMED = (
    "", '"', '""', '"x', 'x"y z', '"a"b', r'"a\b"', '"a\\"', '"ä"', "ä", '"x";', '"x";A', '"x", "y"',
    '"' + "x" * 256 + '"', "x" * 256,
)  # fmt: skip


@pytest.mark.parametrize("value", MALFORMED)
def test_a_malformed_key_is_named(value: str) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key") as caught:
        name_of(value)
    assert caught.value.param == "Idempotency-Key"


async def test_malformed_keys_are_400(http: httpx.AsyncClient) -> None:
    for value in MALFORMED:
        refused = await http.post("/v1/jobs", json=BODY, headers=[("idempotency-key", value.encode())])
        assert (refused.status_code, refused.json()["param"]) == (400, "Idempotency-Key"), value


async def test_a_quoted_key_joins_the_bare_one(http: httpx.AsyncClient) -> None:
    first = await http.post("/v1/jobs", json=BODY, headers={"idempotency-key": "mine"})
    again = await http.post("/v1/jobs", json=BODY, headers={"idempotency-key": '"mine"'})
    assert first.json()["id"] == again.json()["id"]


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/jobs", {**BODY, "seed": 1}), ("/v1/chat/completions", chat()), ("/v1/jobs", {**BODY, "prompt": "ho"})],
)
async def test_another_body_under_a_used_key_is_refused(http: httpx.AsyncClient, path: str, body: dict) -> None:
    """Another request gets 422; an equivalent body gets the job."""
    first = await http.post("/v1/jobs", json=BODY, headers=KEYED)
    refused = await http.post(path, json=body, headers=KEYED)
    assert refused.status_code == 422
    assert "idempotency_key_reused" in refused.text
    same = await http.post("/v1/jobs", json={"prompt": "hi", "seed": None, "model": MODEL}, headers=KEYED)
    assert same.json()["id"] == first.json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "é".encode(), "a\tb"])
async def test_an_invalid_key_is_refused(http: httpx.AsyncClient, key: str | bytes) -> None:
    for path, body in (("/v1/jobs", BODY), ("/v1/chat/completions", chat())):
        response = await http.post(path, json=body, headers={"idempotency-key": key})
        assert response.status_code == 400
        assert "Idempotency-Key" in response.text


async def test_a_refused_request_releases_its_key(
    http: httpx.AsyncClient, settings: Settings, worker: ScriptedWorker, backend: Backend
) -> None:
    """After an unknown model or a full queue, the key can be used for another request."""
    assert (await http.post("/v1/jobs", json={**BODY, "model": "unknown"}, headers=KEYED)).status_code == 404
    assert (await http.post("/v1/jobs", json=BODY, headers=KEYED)).status_code == 202
    full = Backend.open(settings.model_copy(update={"queue_depth": 1}))
    async with serving(settings, full) as url, httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as other:
        headers = {"idempotency-key": "k2"}
        assert (await other.post("/v1/jobs", json=BODY, headers=headers)).status_code == 503
        await worker.answer("x")
        assert (await other.post("/v1/jobs", json={**BODY, "seed": 5}, headers=headers)).status_code == 202
    await full.close()


async def test_each_tenant_has_its_own_keys(http: httpx.AsyncClient, backend: Backend) -> None:
    """The same key of two tenants has two names in the store, and neither reveals the key."""
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
    """A replica that took a key for BODY and died before it queued the request."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        body = JobSubmission(**BODY).model_dump_json()
        key = IdempotencyKey.from_header(["k1"], tenant="default", kind="job", body=body)
        assert key is not None
        self.key = key

    async def hold(self, age: float = 0.0) -> Identity:
        identity = Identity.new(await self.backend.token_log.now() - age, 77, self.key)
        await self.backend.locks.acquire(self.key.name, msgspec.json.encode(identity), 60)
        return identity


@pytest.mark.parametrize("reached", ["the key", "the log", "the queue"])
async def test_an_interrupted_admission_is_finished_by_the_next(
    http: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend, reached: str
) -> None:
    """When the key of a dead replica is sent again, that same request runs."""
    left = await Died(backend).hold()
    draft = left.complete(JobSubmission(**BODY).to_request("default"), None)
    if reached != "the key":
        await backend.token_log.create(draft)
    if reached == "the queue":
        await backend.transport.publish(draft)
    sent = await asyncio.gather(*[http.post("/v1/jobs", json=BODY, headers=KEYED) for _ in range(3)])
    assert {response.json()["id"] for response in sent} == {left.id}
    request = await worker.answer("x")
    assert (request.id, request.params.seed, request.created_at) == (left.id, 77, left.created_at)
    record = await backend.token_log.record(left.id)
    assert record is not None
    assert record.state is RequestState.COMPLETED


async def test_a_key_whose_answer_expired_makes_a_new_request(
    http: httpx.AsyncClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer_api.admission.gateway.KEY_RETRY_DELAYS_S", (10 * LIMIT_S,) * 2)
    old = await Died(backend).hold(age=STALE_KEY_AGE_S + 1)
    async with asyncio.timeout(LIMIT_S):
        new = (await http.post("/v1/jobs", json=BODY, headers=KEYED)).json()["id"]
    assert new != old.id


async def test_another_replica_resumes_a_stream_after_any_frame(
    settings: Settings, backend: Backend, http: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    """A keyed stream with appends of 1, 3 and 2 tokens can be resumed after each of them."""
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


async def test_a_keyed_stream_continues_without_its_client(
    http: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend
) -> None:
    """If the client disconnects, the answer continues, and a client that resumes gets the rest."""
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


async def test_streams_that_cannot_be_resumed_are_refused(http: httpx.AsyncClient, backend: Backend) -> None:
    """Last-Event-ID gets 400 without a key or a stream, and 404 if there is no answer."""
    path, seen = "/v1/chat/completions", {"last-event-id": "3"}
    assert (await http.post(path, json=chat(stream=True), headers=seen)).status_code == 400
    assert (await http.post(path, json=chat(), headers={**KEYED, **seen})).status_code == 400
    assert (await http.post(path, json=chat(stream=True), headers={**KEYED, **seen})).status_code == 404
    assert await backend.redis.keys("hr:hold:idempotency:*") == []
    assert (await backend.transport.depth(MODEL)).waiting == 0


@pytest.mark.parametrize(("path", "body"), [("/v1/jobs", BODY), ("/v1/responses", RESPONSE)])
async def test_a_request_that_is_deleted_while_it_is_joined_may_be_sent_again(
    http: httpx.AsyncClient, backend: Backend, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, object]
) -> None:
    """Not a 404, which would end the client's attempts: what is lost before it ran is deleted by the sweeper."""
    sent = await http.post(path, json=body, headers=KEYED)
    assert sent.is_success
    join = Gateway.submit

    async def join_and_lose(*arguments: object, **options: object) -> Admission:
        admission = await join(*arguments, **options)  # type: ignore[arg-type]
        assert await backend.token_log.close(admission.request.id, LOST)
        await backend.token_log.forget(admission.request.id)
        return admission

    with monkeypatch.context() as patched:
        patched.setattr(Gateway, "submit", join_and_lose)
        lost = await http.post(path, json=body, headers=KEYED)
    assert (lost.status_code, (await http.post(path, json=body, headers=KEYED)).is_success) == (503, True)
