"""Shutdown of an API process: no answer is lost, and resumable streams move to another replica at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import openai
import pytest

from headrace import AsyncHeadraceClient
from producer_api.server import Server, listen
from shared.backend import Backend
from shared.runtime.sockets import free_port
from shared.settings import Settings
from tests.support.api_server import chat, frames
from tests.support.fakes import MODEL
from tests.support.scripted_worker import Job, ScriptedWorker
from tests.support.waiting import LIMIT_S, ticking

BODY = {"model": MODEL, "prompt": "hi"}


class Replica:
    """An API that a test may tell to stop."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._listener = listen(settings)
        host, port = self._listener.getsockname()
        self.url = f"http://{host}:{port}"
        self.port = port
        self._server = Server(settings, backend)
        self.stopped = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    @property
    def listening(self) -> bool:
        return any(server.is_serving() for server in self._server.servers)

    def stop(self) -> None:
        """Shut down as on SIGTERM."""
        self._server.should_exit = True


@asynccontextmanager
async def replica(settings: Settings, backend: Backend, *, grace: float = 10) -> AsyncIterator[Replica]:
    made = Replica(settings.model_copy(update={"grace": grace}), backend)
    yield made
    made.stop()
    await made.stopped


async def begun(worker: ScriptedWorker) -> Job:
    """The next request, its first token written."""
    job = await worker.take()
    await job.say("a")
    return job


async def until_draining(http: httpx.AsyncClient) -> httpx.Response:
    while (response := await http.get("/ready")).status_code == 200:
        pass
    return response


async def test_a_shutdown_completes_streams_and_refuses_new_work(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with (
        replica(settings, backend) as api,
        httpx.AsyncClient(base_url=api.url, timeout=LIMIT_S) as http,
        httpx.AsyncClient(base_url=api.url, timeout=LIMIT_S) as other,
    ):
        speaking = asyncio.create_task(begun(worker))
        async with http.stream("POST", "/v1/chat/completions/stream", json=chat()) as response:
            job = await speaking
            api.stop()
            ready = await until_draining(other)
            assert (ready.json()["ready"], ready.json()["reason"]) == (False, "the server is shutting down")
            for method, path, body in (
                ("POST", "/v1/jobs", BODY),
                ("POST", "/v1/chat/completions", chat()),
                ("GET", f"/v1/jobs/{job.request.id}/events", None),
            ):
                refused = await other.request(method, path, json=body)
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "1"
                assert refused.headers["connection"] == "close"
            assert (await other.get("/live")).status_code == 200
            await job.say("b")
            await job.end()
            found = [frame async for frame in frames(response)]
        assert found[-1]["data"] == "[DONE]"
        async with asyncio.timeout(LIMIT_S):
            await api.stopped
    assert (await backend.transport.depth(MODEL)).waiting == 0


async def test_resumable_streams_move_to_another_replica(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with replica(settings, backend, grace=60) as first, replica(settings, backend) as second:
        urls = [first.url, second.url]
        async with AsyncHeadraceClient(urls) as client:
            events = asyncio.create_task(_all(client.stream(BODY)))
            job = await begun(worker)
            chunks = asyncio.create_task(_all(client.chat(chat())))
            chat_job = await begun(worker)
            whole = asyncio.create_task(_keyed_whole(urls))
            third = await begun(worker)
            first.stop()
            async with ticking() as ticks:
                await first.stopped
            assert ticks.seconds < 5, "the shutdown waited for no client"
            for running in (job, chat_job, third):
                assert await running.say("b")
                await running.end()
            assert [event.name for event in await events] == ["token", "token", "done"]
            texts = [each["choices"][0]["delta"].get("content") for each in await chunks]
            assert texts == ["", "a", "b"]
            assert (await whole)["choices"][0]["message"]["content"] == "ab"


async def _all(items):
    return [item async for item in items]


async def _keyed_whole(urls: list[str]) -> dict:
    """Client that sends a keyed chat again when a stream asks it to reconnect."""
    for url in urls:
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
            answer = await http.post("/v1/chat/completions", json=chat(), headers={"idempotency-key": "w"})
            if answer.status_code == 200:
                return answer.json()
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    raise AssertionError("no replica answered")


async def test_the_last_frame_asks_clients_to_reconnect(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    """Frames: `retry:` and an event, which has no id."""
    async with replica(settings, backend) as api, httpx.AsyncClient(base_url=api.url, timeout=LIMIT_S) as http:
        job_id = (await http.post("/v1/jobs", json=BODY)).json()["id"]
        await begun(worker)
        events = asyncio.create_task(http.get(f"/v1/jobs/{job_id}/events"))
        speaking = asyncio.create_task(begun(worker))
        keyed = {"idempotency-key": "s"}
        async with http.stream("POST", "/v1/chat/completions/stream", json=chat(), headers=keyed) as response:
            job = await speaking
            stream = frames(response)
            seen = [await anext(stream), await anext(stream)]
            api.stop()
            seen += [frame async for frame in stream]
        told = (await events).text
    assert [frame.get("id") for frame in seen] == [None, "0", None]
    assert (seen[-1]["retry"], seen[-1]["event"]) == ("1000", "error")
    assert json.loads(seen[-1]["data"])["error"]["code"] == "unavailable"
    assert told.split("\n\n")[-2].split("\n")[:2] == ["retry: 1000", "event: interrupted"]
    assert json.loads(told.split("data: ")[-1])["code"] == "unavailable"
    assert await job.say("b"), "it goes on"


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("api", ["chat", "completions"])
async def test_a_drained_stream_raises_an_error_of_openais_package(
    settings: Settings, backend: Backend, worker: ScriptedWorker, api: str, asynchronous: bool
) -> None:
    async with replica(settings, backend) as served:
        seen: asyncio.Queue[Any] = asyncio.Queue()
        stream = _stream_async if asynchronous else partial(asyncio.to_thread, _stream_sync)
        reading = asyncio.create_task(stream(f"{served.url}/v1", api, seen.put_nowait, asyncio.get_running_loop()))
        await begun(worker)
        async with asyncio.timeout(LIMIT_S):
            await seen.get()
            served.stop()
            with pytest.raises(openai.APIError, match="the server is shutting down"):
                await reading


def _create(client: Any, api: str) -> Any:
    given = {"model": MODEL, "stream": True, "extra_headers": {"idempotency-key": "s"}}
    if api == "chat":
        return client.chat.completions.create(messages=chat()["messages"], **given)
    return client.completions.create(prompt="hi", **given)


def _stream_sync(url: str, api: str, see: Callable[[Any], None], loop: asyncio.AbstractEventLoop) -> None:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        for chunk in _create(client, api):
            loop.call_soon_threadsafe(see, chunk)


async def _stream_async(url: str, api: str, see: Callable[[Any], None], loop: asyncio.AbstractEventLoop) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        async for chunk in await _create(client, api):
            see(chunk)


@pytest.fixture
def shared_port(settings: Settings) -> Settings:
    """Settings of replicas that listen on one port."""
    return settings.model_copy(update={"reuse_port": True, "port": free_port(settings.host)})


async def test_a_replica_on_the_same_port_takes_over(
    shared_port: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with (
        replica(shared_port, backend, grace=60) as first,
        httpx.AsyncClient(base_url=first.url, timeout=LIMIT_S) as http,
    ):
        speaking = asyncio.create_task(begun(worker))
        async with http.stream("POST", "/v1/chat/completions/stream", json=chat()) as response:
            job = await speaking
            async with replica(shared_port, backend) as second:
                assert second.url == first.url
                first.stop()
                while first.listening:
                    await asyncio.sleep(0)
                for _ in range(20):
                    async with httpx.AsyncClient(base_url=first.url, timeout=LIMIT_S) as fresh:
                        assert (await fresh.get("/ready")).status_code == 200
            await job.end()
            assert (await response.aread()).endswith(b"[DONE]\n\n")
