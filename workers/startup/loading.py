"""Loading and warm-up of the engine, while heartbeats report the progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import structlog

from shared.backend import Backend
from shared.errors import HeadraceError, InvalidRequest, Unavailable
from shared.models.model_store import ModelRepository
from shared.models.startup_progress import StartupProgress
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Request
from shared.settings import Settings
from workers.engine.interface import EngineOutput, EngineRequest, Generator
from workers.engine.stage import Stage
from workers.preparation.preparer import Preparer, preparer_for
from workers.runtimes.select import load_runtime
from workers.startup.warmup import WarmUp, active_request, built_in, compute, failed, read_warm_ups

HEARTBEAT_INTERVAL_S = 0.5

log = structlog.get_logger(__name__)
InLoader = Callable[..., Awaitable[object]]  # calls a function in the thread that loads the engine


async def load_engine(
    settings: Settings, repository: ModelRepository, backend: Backend, info: WorkerInfo, progress: StartupProgress
) -> tuple[Generator, WorkerInfo]:
    """Return a warm engine, and the worker's registry entry with its properties.

    Raises:
        ConfigError: the model, the runtime or the warm-up requests cannot be used.
        EngineFailed: the engine could not compute a warm-up request.
    """
    declared = settings.warmup_requests
    warm_ups = None if declared is None else read_warm_ups(declared, info.model)
    loop = asyncio.get_running_loop()
    # The thread must end before the engine's own thread starts: OpenMP keeps a team for each thread that has
    # computed. If there are more teams than cores, their threads wait passively, which is a quarter slower.
    async with heartbeats(backend, info, settings.lease, progress):
        with ThreadPoolExecutor(max_workers=1) as loader:
            engine = await loop.run_in_executor(loader, load_runtime, settings, repository, progress)
            ready = ready_entry(info, engine, settings)
            if warm_ups is None and settings.runtime != "upstream":  # whose server may charge for it
                warm_ups = [built_in(info.model, engine.task)]
            with progress.phase("warmup"):
                await run_warm_ups(engine, ready, settings, warm_ups or [], partial(loop.run_in_executor, loader))
    return engine, ready


def ready_entry(info: WorkerInfo, engine: Generator, settings: Settings) -> WorkerInfo:
    """Return the registry entry of a worker with this engine."""
    return msgspec.structs.replace(
        info,
        state="ready",
        progress=1.0,
        max_model_len=engine.max_model_len,
        task=engine.task,
        fingerprint=engine.fingerprint,
        runtime=settings.runtime,
        max_num_seqs=settings.max_num_seqs,
    )


async def run_warm_ups(
    engine: Generator, info: WorkerInfo, settings: Settings, warm_ups: list[WarmUp], in_loader: InLoader
) -> None:
    """Run the requests one after the other. Raises ConfigError or EngineFailed, with the request that failed."""
    preparer = preparer_for(engine, info, settings)
    try:
        for number, warm_up in enumerate(warm_ups):
            try:
                await _run(engine, preparer, warm_up, number, in_loader)
            except HeadraceError as error:
                raise failed(warm_up, error) from error
    finally:
        preparer.close()


async def _run(engine: Generator, preparer: Preparer, warm_up: WarmUp, number: int, in_loader: InLoader) -> None:
    try:
        prepared = await _prepare(preparer, warm_up.request, number)
    except InvalidRequest:
        if warm_up.alternative is None:
            raise
        prepared = await _prepare(preparer, warm_up.alternative, number)
    if not isinstance(prepared, EngineOutput):
        with Stage("computation", run_id=prepared.id):
            await in_loader(compute, engine, prepared)


async def _prepare(preparer: Preparer, request: Request, number: int) -> EngineRequest | EngineOutput:
    active = active_request(request, number)
    with Stage("preparation", job_id=active.id):
        return await preparer.prepare(active)


@asynccontextmanager
async def heartbeats(
    backend: Backend, info: WorkerInfo, lease: float, progress: StartupProgress
) -> AsyncIterator[None]:
    """Send heartbeats with the progress until the body ends."""

    async def send() -> None:
        while True:
            try:
                await backend.registry.beat(msgspec.structs.replace(info, progress=progress.share))
            except Unavailable as error:
                log.warning("heartbeat_failed", error=error.message)
            await asyncio.sleep(min(HEARTBEAT_INTERVAL_S, lease / 3))

    heartbeats = asyncio.create_task(send())
    try:
        yield
    finally:
        heartbeats.cancel()
