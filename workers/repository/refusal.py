"""Refusal of the requests that wait for a model which cannot be served: each ends with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec

from shared.errors import HeadraceError
from shared.models.worker_registry import Task
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.stats import EngineStats
from workers.repository.queue_watch import is_demanded
from workers.repository.serving.context import HostContext
from workers.worker import Worker

EMPTY_POLL_S = 0.05  # between looks whether requests still wait


class RefusingEngine:
    """A Generator that refuses every request with one error."""

    tokenizer = None
    constraints = None
    fingerprint = ""
    computation: Mapping[str, str] = MappingProxyType({})
    max_model_len = 0
    task: Task = "generate"

    def __init__(self, error: HeadraceError) -> None:
        self._error = error

    def add(self, request: EngineRequest) -> None:
        raise self._error

    def abort(self, job_id: str) -> bool:
        return False

    def step(self) -> list[EngineOutput]:
        return []

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        pass

    def wake_with(self, wake: Callable[[], None]) -> None:
        pass

    def has_work(self) -> bool:
        return False

    def stats(self) -> EngineStats:
        return EngineStats()


async def refuse_waiting(model: str, error: HeadraceError, context: HostContext) -> None:
    """End the requests in a model's queue with an error. Raises Unavailable.

    It ends once the queue is empty, or another worker loads or serves the model.
    """
    info = msgspec.structs.replace(context.new_worker(model), task=None)
    worker = Worker(
        info,
        RefusingEngine(error),
        context.backend,
        context.settings,
        context.metrics,
        sole_request=context.workers.sole_request,
    )
    async with context.workers.present(worker, model):
        work = asyncio.create_task(worker.run())
        try:
            while not work.done():
                if not await is_demanded(context.backend, model):
                    return
                await asyncio.wait([work], timeout=EMPTY_POLL_S)
        finally:
            worker.drain()
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await work  # else its entry would stay in the registry, as that of a worker which loads the model
                raise
