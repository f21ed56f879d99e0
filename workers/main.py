"""A worker process, from its settings to its end."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import msgspec
import structlog
import uvloop
from prometheus_client import start_http_server

from shared.backend import Backend
from shared.errors import ConfigError, EngineFailed, Unavailable
from shared.models.model_store import SCRIPTED, ModelRepository
from shared.models.worker_registry import ModelInfo, WorkerInfo
from shared.runtime.gc_tuning import settle
from shared.settings import Settings
from workers.engine.interface import Generator
from workers.metrics import WorkerMetrics
from workers.openmp_env import spin_briefly
from workers.scripted_engine import CONTEXT, ScriptedEngine
from workers.worker import Worker

if TYPE_CHECKING:
    from workers.kafka.intake import KafkaIntake

# Seconds that the engine's thread may keep the interpreter while a token waits to be written. With Python's 5 ms
# each of the few hand-overs between a step and its append waited that long.
SWITCH_INTERVAL = 0.001

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Serve the settings' model until SIGTERM or SIGINT.

    Raises:
        Unavailable: Redis does not answer at the start.
        ConfigError: the model or the device cannot be used.
        EngineFailed: the engine broke; what it held is left to other workers.
    """
    spin_briefly()
    # Each text is tokenized by the thread that asks: in the library's pool a short one would wait for long ones.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.setswitchinterval(SWITCH_INTERVAL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    backend = Backend.open(settings)
    try:
        await backend.start()
        repository = ModelRepository(settings)
        info = WorkerInfo(
            id=f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(3)}",
            pid=os.getpid(),
            model=repository.served_name,
            state="loading",
        )
        metrics = WorkerMetrics()
        if backend.server is not None:
            metrics.registry.register(backend.server.foreign)
        if settings.metrics_port is not None:
            _serve_metrics(settings.metrics_port, settings.host, metrics)
        engine = await _load(settings, repository, backend, info)
        info = msgspec.structs.replace(
            info,
            state="ready",
            progress=1.0,
            max_model_len=engine.max_model_len,
            task=engine.task,
            fingerprint=engine.fingerprint,
        )
        worker = Worker(info, engine, backend, settings, metrics)
        async with _kafka(settings, backend, info, metrics, worker.drain) as intake:
            await _work(worker, intake, info)
    finally:
        await backend.close()


def _serve_metrics(port: int, host: str, metrics: WorkerMetrics) -> None:
    """Raises ConfigError."""
    try:
        server, _ = start_http_server(port, host, registry=metrics.registry)
    except OSError as error:
        raise ConfigError(
            f"metrics_port {port} on {host} cannot be used ({error.strerror}): choose another, or 0",
            param="metrics_port",
        ) from None
    log.info("metrics", port=server.server_port)


@asynccontextmanager
async def _kafka(
    settings: Settings,
    backend: Backend,
    info: WorkerInfo,
    metrics: WorkerMetrics,
    failed: Callable[[], None],
) -> AsyncIterator[KafkaIntake | None]:
    """The way in from Kafka's topics, where there are brokers. It ends after the worker, to tell the last."""
    if not settings.kafka_bootstrap:
        yield None
        return
    try:
        from workers.kafka.intake import KafkaIntake  # noqa: PLC0415  kafka-python is there only where it is used
        from workers.kafka.metrics import KafkaMetrics  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"{error}: install headrace[kafka]", param="kafka_bootstrap") from error
    model = ModelInfo(
        name=info.model, max_model_len=info.max_model_len, created=0, task=info.task, fingerprint=info.fingerprint
    )
    intake = KafkaIntake(settings, backend, model, info.id, KafkaMetrics(metrics.registry))
    running = asyncio.create_task(intake.run())
    running.add_done_callback(lambda _: failed())  # a worker does not go on without it
    try:
        yield intake
        await intake.settle()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def _work(worker: Worker, intake: KafkaIntake | None, info: WorkerInfo) -> None:
    loop = asyncio.get_running_loop()

    def drain() -> None:
        worker.drain()
        if intake is not None:
            intake.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drain)
    settle()
    log.info("worker_ready", worker=info.id, model=info.model, max_model_len=info.max_model_len)
    try:
        await worker.run()
    except BaseExceptionGroup as group:
        raise EngineFailed(f"the worker stopped: {group.exceptions[0]!r}") from group
    log.info("worker_stopped", worker=info.id)


async def _load(settings: Settings, repository: ModelRepository, backend: Backend, info: WorkerInfo) -> Generator:
    """The engine, loaded in a thread while the heartbeat tells how far it is."""
    progress = 0.0

    def note(share: float) -> None:
        nonlocal progress
        progress = share

    async def beat() -> None:
        while True:
            try:
                await backend.registry.beat(msgspec.structs.replace(info, progress=progress))
            except Unavailable as error:
                log.warning("heartbeat_failed", error=error.message)
            await asyncio.sleep(min(0.5, settings.lease / 3))

    beating = asyncio.create_task(beat())
    try:
        # The thread must be gone before the engine's own starts: OpenMP keeps a team for each thread that computed,
        # and waits passively, a quarter slower, once teams outnumber the cores.
        with ThreadPoolExecutor(max_workers=1) as loader:
            return await asyncio.get_running_loop().run_in_executor(loader, _build, settings, repository, note)
    finally:
        beating.cancel()


def _build(settings: Settings, repository: ModelRepository, note: Callable[[float], None]) -> Generator:
    if settings.model == SCRIPTED:
        return ScriptedEngine(max_model_len=settings.max_model_len or CONTEXT, max_num_seqs=settings.max_num_seqs)
    try:
        from workers.engine.config import EngineConfig  # noqa: PLC0415  torch is imported only where it is used
        from workers.engine.embedding_engine import EmbeddingEngine  # noqa: PLC0415
        from workers.engine.engine import Engine  # noqa: PLC0415
        from workers.engine.models.bert_loader import embeds  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"the engine cannot be imported ({error}): install headrace[worker]") from error
    config = EngineConfig.of(settings, repository.folder(note))
    return EmbeddingEngine.load(config) if embeds(config.model) else Engine.load(config, note)
