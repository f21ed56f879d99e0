"""Workers in the process of a test, engines that a test controls, and the expected tokens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Request, TokenEvent
from shared.settings import Settings
from tests.support.fakes import MODEL
from tests.support.waiting import LIMIT_S
from workers.engine.interface import EngineOutput, EngineRequest, Generator
from workers.metrics import WorkerMetrics
from workers.scripted_engine import ScriptedEngine, expected
from workers.worker import Worker


def expected_tokens(request: Request, choice: int = 0) -> list[int]:
    """Return the tokens of the scripted engine for a choice of a request."""
    prompt = [ord(character) for character in str(request.prompt)]
    return [expected(prompt, choice, p) for p in range(request.params.max_tokens or 0)]


def answer_tokens(events: list[TokenEvent], choice: int = 0) -> list[int]:
    """Return the tokens of a choice in an answer."""
    return [token.id for event in events for token in event.tokens if token.choice == choice]


class Harness:
    """Runs workers for the duration of a block of a test."""

    def __init__(self, backend: Backend, settings: Settings, *, fingerprinted: bool = False) -> None:
        self.fingerprinted = fingerprinted
        self.backend = backend
        self.settings = settings
        self.metrics = WorkerMetrics()

    def make(self, engine: Generator, name: str = "a", model: str = MODEL) -> Worker:
        info = WorkerInfo(
            id=name,
            pid=1,
            model=model,
            state="ready",
            max_model_len=engine.max_model_len,
            task=engine.task,
            fingerprint=engine.fingerprint if self.fingerprinted else "",
            adapters=self.settings.lora_dir is not None,
        )
        return Worker(info, engine, self.backend, self.settings, self.metrics)

    @asynccontextmanager
    async def worker(
        self, engine: Generator | None = None, name: str = "a", model: str = MODEL
    ) -> AsyncIterator[Worker]:
        worker = self.make(engine or ScriptedEngine(), name, model)
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.drain()
            await task


class RecordingEngine(ScriptedEngine):
    """Engine that records its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[EngineRequest] = []

    def add(self, request: EngineRequest) -> None:
        self.requests.append(request)
        super().add(request)


class GatedEngine(ScriptedEngine):
    """Engine that pauses after `limit` steps, until a test raises the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.aborted: list[str] = []
        self._pause = threading.Event()

    def step(self) -> list[EngineOutput]:
        if self.limit <= 0:
            self._pause.wait(0.005)  # lets the worker's event loop run and send commands
            return []
        self.limit -= 1
        return super().step()

    def abort(self, job_id: str) -> bool:
        self.aborted.append(job_id)
        return super().abort(job_id)


async def wait_until(condition: Callable[[], bool]) -> None:
    """Poll a condition until it is true. Raises TimeoutError after LIMIT_S."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def wait_for_tokens(backend: Backend, request: Request, count: int) -> None:
    """Wait until the log holds `count` tokens."""
    async for event in backend.token_log.follow(request.id, idle=LIMIT_S):
        if event and event.last_seq >= count - 1:
            return
