"""A server on a free port, and a worker that answers by a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI

from producer_api.admin_app import create_admin_app
from producer_api.app import create_app
from producer_api.server import Server, listen
from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.protocol import FinishReason, Request, RequestState, Terminal, Token, TokenEvent, Usage
from shared.queue.interface import Delivery, Room
from shared.redis import keys
from shared.settings import Settings
from shared.token_log.interface import Append, Lease
from tests.support.fakes import MODEL
from tests.support.kafka_mock import moved
from tests.support.waiting import LIMIT_S

PROMPT_TOKENS = 5


class ScriptedWorker:
    """Worker that pulls requests one at a time and writes what a test says."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    async def announce(self, state: str = "ready", progress: float = 1.0) -> None:
        await self.backend.registry.beat(
            WorkerInfo(
                id="w1",
                pid=1,
                model=MODEL,
                state=state,
                progress=progress,
                max_model_len=1024,
                fingerprint="fp_test",
            )
        )

    async def pull(self) -> Delivery:
        """Return the next request, waiting for it."""
        async with asyncio.timeout(LIMIT_S), self.backend.live.subscribe(keys.wake_channel(MODEL)) as wake:
            while True:
                for delivery in (await self.backend.transport.pull(MODEL, "w1", Room.all(1))).found:
                    assert isinstance(delivery, Delivery)
                    return delivery
                await wake.get(1.0)

    async def take(self) -> Job:
        delivery = await self.pull()
        [lease] = await self.backend.token_log.acquire([delivery.request.id], "w1")
        assert lease is not None
        return Job(self.backend, delivery, lease)

    async def answer(self, *texts: str, n: int = 1, times: int = 1) -> Request:
        """Take requests and answer each with these texts, one token each, in each of n choices."""
        for _ in range(times):
            job = await self.take()
            for i, text in enumerate(texts):
                finish = FinishReason.STOP if i == len(texts) - 1 else None
                await job.write(*(Token(choice, i, text, finish) for choice in range(n)))
            await job.end()
        return job.request


@dataclass
class Job:
    """A request that a worker has leased."""

    backend: Backend
    delivery: Delivery
    lease: Lease
    seq: int = 0

    @property
    def request(self) -> Request:
        return self.delivery.request

    async def write(self, *tokens: Token) -> bool:
        return await self._append(TokenEvent(self.seq, tokens))

    async def say(self, text: str) -> bool:
        return await self.write(Token(0, self.seq, text))

    async def say_all(self, texts: list[str]) -> bool:
        """Write several tokens in one append."""
        return await self.write(*(Token(0, self.seq + i, text) for i, text in enumerate(texts)))

    async def end(self, state: RequestState = RequestState.COMPLETED, error=None) -> bool:
        waited = self.lease.started_at - self.request.created_at
        end = Terminal(state, Usage(PROMPT_TOKENS, self.seq), error, waited)
        written = await self._append(TokenEvent(self.seq, (), end))
        await self.backend.transport.acknowledge([self.delivery.claim])
        return written

    async def _append(self, event: TokenEvent) -> bool:
        (written,) = await self.backend.token_log.append([Append(self.lease, event, PROMPT_TOKENS)])
        self.seq += event.count
        return written


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a module's tests with each of its QUEUES."""
    if "queue" in metafunc.fixturenames:
        metafunc.parametrize("queue", getattr(metafunc.module, "QUEUES", ["redis"]))


@pytest.fixture
def queue() -> str:
    """Name of the queue that the API uses."""
    raise AssertionError("set by pytest_generate_tests")


@pytest.fixture
async def backend(backend: Backend, settings: Settings, queue: str, request: pytest.FixtureRequest) -> Backend:
    if queue == "redis":
        return backend
    return moved(backend, settings, request.getfixturevalue("kafka_writer"))


@pytest.fixture
async def worker(backend: Backend) -> ScriptedWorker:
    scripted = ScriptedWorker(backend)
    await scripted.announce()
    return scripted


@asynccontextmanager
async def serving(settings: Settings, backend: Backend) -> AsyncIterator[str]:
    """Serve the API on a free port, and yield its URL."""
    listener = listen(settings)
    server = Server(settings, backend)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    host, port = listener.getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def api(settings: Settings, backend: Backend, worker: ScriptedWorker) -> AsyncIterator[str]:
    async with serving(settings, backend) as url:
        yield url


@pytest.fixture
async def app(settings: Settings, backend: Backend, worker: ScriptedWorker) -> AsyncIterator[FastAPI]:
    made = create_app(settings, backend)
    yield made
    await made.state.context.close()


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client that calls the application without a socket; streams arrive complete."""
    async with calling(app) as opened:
        yield opened


def calling(app: FastAPI, key: str | None = None) -> httpx.AsyncClient:
    """Return a client that calls with an API key, without a socket."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


def administering(app: FastAPI, key: str | None = None) -> httpx.AsyncClient:
    """Return a client of the admin application around the services of `app`."""
    return calling(create_admin_app(app.state.context), key)


def chat(**fields: object) -> dict[str, object]:
    """Return the body of a small chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}


async def frames(response: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """Yield the server-sent events of a response as they arrive; a comment as {"": text}."""
    frame: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            yield {"": line.removeprefix(": ")}
        elif line:
            name, _, value = line.partition(":")
            frame[name] = value.removeprefix(" ")
        elif frame:
            yield frame
            frame = {}
