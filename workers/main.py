"""The worker process: start the engine and the worker, and stop them on a signal."""

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
from shared.models.model_store import ModelRepository
from shared.models.worker_registry import ModelInfo, WorkerInfo
from shared.routing.weight_check import check_weight
from shared.runtime.gc_tuning import settle
from shared.settings import Settings
from workers.engine.interface import Generator
from workers.metrics import WorkerMetrics
from workers.openmp_env import spin_briefly
from workers.runtimes.select import load_runtime
from workers.worker import Worker

if TYPE_CHECKING:
    from workers.kafka.intake import KafkaIntake

# The longest time that the engine's thread keeps the interpreter while a token waits to be appended. With Python's
# default of 5 ms, each of the few thread switches between a step and its append waited that long.
SWITCH_INTERVAL_S = 0.001

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Serve the settings' model until SIGTERM or SIGINT.

    Raises:
        Unavailable: Redis does not answer at the start.
        ConfigError: the model or the device cannot be used.
        EngineFailed: the engine failed; other workers take over its requests.
    """
    spin_briefly()
    # Tokenize each text in the calling thread: in the library's own pool, a short text would wait for long ones.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
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
            weight=settings.routing_weight,
        )
        metrics = WorkerMetrics()
        if backend.server is not None:
            metrics.registry.register(backend.server.foreign)
        metrics.registry.register(backend.router)
        if settings.metrics_port is not None:
            _serve_metrics(settings.metrics_port, settings.host, metrics)
        await _announce(info, backend, settings)
        engine = await _load_engine(settings, repository, backend, info)
        info = msgspec.structs.replace(
            info,
            state="ready",
            progress=1.0,
            max_model_len=engine.max_model_len,
            task=engine.task,
            fingerprint=engine.fingerprint,
            runtime=settings.runtime,
            max_num_seqs=settings.max_num_seqs,
        )
        worker = Worker(info, engine, backend, settings, metrics)
        async with _kafka_intake(settings, backend, info, metrics, worker.drain) as intake:
            await _run_worker(worker, intake, info)
    finally:
        await backend.close()


def _serve_metrics(port: int, host: str, metrics: WorkerMetrics) -> None:
    """Serve /metrics in a thread. Raises ConfigError if the port cannot be used."""
    try:
        server, _ = start_http_server(port, host, registry=metrics.registry)
    except OSError as error:
        raise ConfigError(
            f"metrics_port {port} on {host} cannot be used ({error.strerror}): set a free port, or 0 for any",
            param="metrics_port",
        ) from None
    log.info("metrics_listening", port=server.server_port)


@asynccontextmanager
async def _kafka_intake(
    settings: Settings,
    backend: Backend,
    info: WorkerInfo,
    metrics: WorkerMetrics,
    on_failure: Callable[[], None],
) -> AsyncIterator[KafkaIntake | None]:
    """Run the Kafka intake if brokers are set. It ends after the worker, to write the last results."""
    if not settings.kafka_bootstrap:
        yield None
        return
    try:
        from workers.kafka.intake import KafkaIntake  # noqa: PLC0415  kafka-python is optional
        from workers.kafka.metrics import KafkaMetrics  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"{error}: install headrace[kafka]", param="kafka_bootstrap") from error
    model = ModelInfo.of(info, created=0)
    intake = KafkaIntake(settings, backend, model, info.id, KafkaMetrics(metrics.registry))
    intake_task = asyncio.create_task(intake.run())
    intake_task.add_done_callback(lambda _: on_failure())  # without its intake, the worker stops
    try:
        yield intake
        await intake.settle()
    finally:
        intake_task.cancel()
        with suppress(asyncio.CancelledError):
            await intake_task


async def _run_worker(worker: Worker, intake: KafkaIntake | None, info: WorkerInfo) -> None:
    loop = asyncio.get_running_loop()

    def drain() -> None:
        worker.drain()
        if intake is not None:
            intake.drain()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, drain)
    settle()
    log.info("worker_ready", worker=info.id, model=info.model, max_model_len=info.max_model_len)
    try:
        await worker.run()
    except BaseExceptionGroup as group:
        raise EngineFailed(f"the worker stopped: {group.exceptions[0]!r}") from group
    log.info("worker_stopped", worker=info.id)


async def _announce(info: WorkerInfo, backend: Backend, settings: Settings) -> None:
    """Send the first heartbeat. Raises ConfigError if the weight contradicts those of the other workers."""
    await backend.registry.beat(info)
    try:
        check_weight(info, await backend.registry.workers(), settings)
    except ConfigError:
        await backend.registry.leave(info.id)
        raise


async def _load_engine(
    settings: Settings, repository: ModelRepository, backend: Backend, info: WorkerInfo
) -> Generator:
    """Load the engine in a thread, while heartbeats report the progress."""
    progress = 0.0

    def set_progress(share: float) -> None:
        nonlocal progress
        progress = share

    async def send_heartbeats() -> None:
        while True:
            try:
                await backend.registry.beat(msgspec.structs.replace(info, progress=progress))
            except Unavailable as error:
                log.warning("heartbeat_failed", error=error.message)
            await asyncio.sleep(min(0.5, settings.lease / 3))

    heartbeats = asyncio.create_task(send_heartbeats())
    try:
        # The thread must end before the engine's own thread starts: OpenMP keeps a team for each thread that has
        # computed. If there are more teams than cores, their threads wait passively, which is a quarter slower.
        with ThreadPoolExecutor(max_workers=1) as loader:
            return await asyncio.get_running_loop().run_in_executor(
                loader, load_runtime, settings, repository, set_progress
            )
    finally:
        heartbeats.cancel()
