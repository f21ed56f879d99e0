"""Streams and waiting requests: disconnects, keepalives, slow readers, and failures of the server."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from producer_api.app import create_app
from shared.backend import Backend
from shared.protocol import RequestState
from shared.redis import keys
from shared.redis.embedded import EmbeddedServer
from shared.settings import Settings
from tests.support.api_server import administering, chat, frames, serving
from tests.support.fakes import MODEL, ended
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S, ticking


async def test_leaving_a_stream_cancels(api: str, worker: ScriptedWorker, backend: Backend) -> None:
    """Given a client that reads a stream, if it leaves, expect the request cancelled and its worker fenced."""
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
        job_taken = asyncio.create_task(worker.take())
        opening = http.stream("POST", "/v1/chat/completions", json=chat(stream=True))
        speaking = asyncio.create_task(_say_first(job_taken))
        async with opening as response:
            await anext(frames(response))
    job = await speaking
    assert (await ended(backend, job.request.id)).state is RequestState.CANCELLED
    assert not await job.say("late")


async def _say_first(taken):
    job = await taken
    await job.say("a")
    return job


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnecting_removes_the_request_from_the_queue(
    api: str, worker: ScriptedWorker, backend: Backend, stream: bool
) -> None:
    async with (
        backend.live.subscribe(keys.wake_channel(MODEL)) as wake,
        httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http,
    ):
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=chat(stream=stream)))
        await wake.get(LIMIT_S)
        (key,) = await backend.redis.keys("hr:{req_*}:state")
        asking.cancel()
    job_id = key.decode().split("{")[1].split("}")[0]
    assert (await ended(backend, job_id)).state is RequestState.CANCELLED
    while (await backend.transport.depth(MODEL)).waiting:
        await asyncio.sleep(0)


async def test_a_waiting_stream_gets_keepalives(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    quick = settings.model_copy(update={"keepalive": 0.05})
    async with (
        serving(quick, backend) as url,
        httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http,
        http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response,
    ):
        assert response.status_code == 200
        stream = frames(response)
        for _ in range(3):
            assert await anext(stream) == {"": "keepalive"}
        await worker.answer("x")
        rest = [frame["data"] async for frame in stream if "data" in frame]
    assert rest[-1] == "[DONE]"


async def test_a_full_queue_is_503_with_retry_after(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    bounded = Backend.open(settings.model_copy(update={"queue_depth": 2}))
    async with serving(settings, bounded) as url, httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
        for _ in range(2):
            assert (await http.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})).status_code == 202
        for path, body in (("/v1/jobs", {"model": MODEL, "prompt": "x"}), ("/v1/chat/completions", chat())):
            response = await http.post(path, json=body)
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            assert "queue_full" in response.text
    await bounded.close()
    assert len(await backend.redis.keys("hr:{req_*}:state")) == 2


async def test_the_api_recovers_from_a_redis_outage(settings: Settings, tmp_path) -> None:
    """503 within 2 s, and no restart."""
    server = EmbeddedServer(tmp_path / "valkey")
    server.start()
    backend = Backend.open(settings.model_copy(update={"redis_url": _secret(settings, server.url)}))
    await backend.start()
    worker = ScriptedWorker(backend)
    await worker.announce()
    async with serving(settings, backend) as url, httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
        admin = administering(create_app(settings, backend))
        assert "headrace_queue_waiting{" in (await admin.get("/metrics")).text
        server.stop()
        for method, path, body in (
            ("POST", "/v1/chat/completions", chat()),
            ("POST", "/v1/jobs", {"model": MODEL, "prompt": "x"}),
            ("GET", "/ready", None),
        ):
            async with ticking() as ticks:
                response = await http.request(method, path, json=body)
            assert response.status_code == 503, response.text
            assert ticks.seconds < 2
            assert response.headers["retry-after"]
        assert (await http.get("/live")).status_code == 200
        text = (await admin.get("/metrics")).text
        assert "headrace_api_redis_up 0.0" in text
        assert "headrace_queue_waiting{" not in text, "stale levels"
        server.start()
        await worker.announce()
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=chat()))
        await worker.answer("back")
        assert (await asked).json()["choices"][0]["message"]["content"] == "back"
        await admin.aclose()
    await backend.close()
    server.stop()


def _secret(settings: Settings, url: str):
    return type(settings.redis_url)(url)


async def test_a_shutdown_ends_open_streams_with_an_event(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    hurried = settings.model_copy(update={"grace": 1.0})
    async with httpx.AsyncClient(timeout=LIMIT_S) as http:
        async with serving(hurried, backend) as url:
            job_id = (await http.post(f"{url}/v1/jobs", json={"model": MODEL, "prompt": "x"})).json()["id"]
            events = asyncio.create_task(http.get(f"{url}/v1/jobs/{job_id}/events"))
            job = await worker.take()
            opening = http.stream("POST", f"{url}/v1/chat/completions/stream", json=chat())
            taking = asyncio.create_task(_say_first(asyncio.create_task(worker.take())))
            response = await opening.__aenter__()
            stream = frames(response)
            await anext(stream)
            chat_job = await taking
        left = [frame async for frame in stream]
        await opening.__aexit__(None, None, None)
    assert json.loads(left[-1]["data"])["error"]["code"] == "unavailable"
    assert "event: interrupted" in (await events).text
    assert (await ended(backend, chat_job.request.id)).state is RequestState.CANCELLED
    assert await job.say("still mine"), "the job goes on"


async def test_a_slow_reader_gets_the_whole_answer(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with serving(settings, backend) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = json.dumps({"model": MODEL, "prompt": "x"}).encode()
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
            job_id = (
                await http.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
            ).json()
        writer.write(b"GET /v1/jobs/%b/events HTTP/1.1\r\nhost: localhost\r\n\r\n" % job_id["id"].encode())
        job = await worker.take()
        text = "x" * 100_000
        for _ in range(200):  # 20 MB
            assert await job.say(text)
        await job.end()
        total = 0
        while chunk := await reader.read(1 << 20):
            total += len(chunk)
            if b"event: done" in chunk:
                break
        writer.close()
    assert total > 200 * len(text)
