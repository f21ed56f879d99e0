"""Workers beside a test, an engine that waits for it, and what the scripted engine's rule foretells."""

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
from workers.engine.interface import EngineOutput, Generator
from workers.metrics import WorkerMetrics
from workers.scripted_engine import ScriptedEngine, expected
from workers.worker import Worker


def foretold(request: Request, choice: int = 0) -> list[int]:
    prompt = [ord(character) for character in str(request.prompt)]
    return [expected(prompt, choice, p) for p in range(request.params.max_tokens or 0)]


def told(events: list[TokenEvent], choice: int = 0) -> list[int]:
    return [token.id for event in events for token in event.tokens if token.choice == choice]


class Harness:
    """Starts workers beside the test, and ends them with it."""

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self.backend = backend
        self.settings = settings
        self.metrics = WorkerMetrics()

    def make(self, engine: Generator, name: str = "a", model: str = MODEL) -> Worker:
        info = WorkerInfo(
            id=name, pid=1, model=model, state="ready", max_model_len=engine.max_model_len, task=engine.task
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


class GatedEngine(ScriptedEngine):
    """Makes no token after `limit` steps, until that is raised, so that a test can look in between."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.aborted: list[str] = []
        self._pause = threading.Event()

    def step(self) -> list[EngineOutput]:
        if self.limit <= 0:
            self._pause.wait(0.005)  # lets the worker's own thread run, and commands come in
            return []
        self.limit -= 1
        return super().step()

    def abort(self, job_id: str) -> bool:
        self.aborted.append(job_id)
        return super().abort(job_id)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def tokens_of(backend: Backend, request: Request, count: int) -> None:
    """Until the log holds `count` tokens."""
    async for event in backend.token_log.follow(request.id, idle=LIMIT_S):
        if event and event.last_seq >= count - 1:
            return
