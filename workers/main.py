"""The worker process: start the engine and the worker, or the models of a repository, and stop them on a signal."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

import structlog
import uvloop

from shared.backend import Backend
from shared.errors import ConfigError, EngineFailed
from shared.metrics.http import serve_metrics
from shared.models.model_store import ModelRepository
from shared.models.startup_progress import StartupProgress
from shared.models.upstream import with_upstream_model
from shared.models.worker_registry import UNHEALTHY_STATUS, ModelInfo, WorkerInfo, worker_id_prefix
from shared.routing.weight_check import check_weight
from shared.runtime.gc_tuning import settle
from shared.runtime.logging import settle_logs
from shared.settings import Settings
from shared.tracing.opening import open_tracer
from workers.health.notifier import Notifier
from workers.health.watchdog import EngineHung
from workers.metrics import WorkerMetrics
from workers.model_claim import ModelClaim
from workers.startup.loading import load_engine
from workers.startup.openmp_env import spin_briefly
from workers.startup.sleep import OrderedToLeave, restart_process, sleep_until_woken, wait_until_asleep
from workers.stopping.departures import SIGNALS, stopping_by
from workers.worker import Worker

if TYPE_CHECKING:
    from workers.kafka.intake import KafkaIntake

# The longest time that the engine's thread keeps the interpreter while a token waits to be appended. With Python's
# default of 5 ms, each of the few thread switches between a step and its append waited that long.
SWITCH_INTERVAL_S = 0.001

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Serve the settings' model, or the models of their repository, until SIGTERM or SIGINT.

    Raises:
        Unavailable: Redis does not answer at the start.
        ConfigError: the model or the device cannot be used, or the model's other workers disagree.
        EngineFailed: the engine failed; other workers take over its requests.
    """
    spin_briefly()
    # Tokenize each text in the calling thread: in the library's own pool, a short text would wait for long ones.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if settings.model_repository is not None:
            runner.run(_serve_repository(settings))
            return
        asleep = runner.run(_serve(settings))
    if asleep:
        restart_process()


async def _serve(settings: Settings) -> bool:
    """Serve until a signal, or until the model is put to sleep; return whether it was."""
    progress = StartupProgress()
    settings = await asyncio.to_thread(with_upstream_model, settings)
    backend = Backend.open(settings, open_tracer(settings, "worker"))
    try:
        await backend.start()
        repository = ModelRepository(settings)
        info = WorkerInfo(
            id=worker_id_prefix(os.getpid()) + secrets.token_hex(3),
            pid=os.getpid(),
            model=repository.served_name,
            state="loading",
            weight=settings.routing_weight,
            adapters=settings.lora_dir is not None,
        )
        metrics = _metrics(settings, backend)
        if await sleep_until_woken(backend, info, settings.lease):
            progress = StartupProgress()
        await _announce(info, backend, settings)
        engine, info = await load_engine(settings, repository, backend, info, progress)
        metrics.show_startup(progress)
        if settings.mixed_workers == "refuse":
            await ModelClaim.from_settings(backend.locks, info, settings).acquire()
        worker = Worker(info, engine, backend, settings, metrics, notifier=Notifier.from_environment())
        await worker.adapters.declare(settings.lora_modules)
        async with _kafka_intake(settings, backend, info, metrics, worker.drain) as intake:
            _log_ready(info, progress)
            return await _run_worker(worker, intake, backend, info, settings)
    except OrderedToLeave:
        log.info("worker_stopped", worker=info.id)
        return False
    finally:
        await backend.close()


async def _serve_repository(settings: Settings) -> None:
    """Serve the models of the repository until a signal. Raises ConfigError."""
    from workers.repository.host import RepositoryHost  # noqa: PLC0415  protobuf is optional

    backend = Backend.open(settings, open_tracer(settings, "worker"))
    try:
        await backend.start()
        host = RepositoryHost(settings, backend, _metrics(settings, backend), Notifier.from_environment())
        settle()
        try:
            async with stopping_by(settings, backend, host.worker_ids, host.drain):
                await host.run()
        except EngineHung as error:
            _exit_unhealthy(error)
        log.info("worker_stopped")
    finally:
        await backend.close()


def _metrics(settings: Settings, backend: Backend) -> WorkerMetrics:
    """Return the metrics of this process, served on the port that the settings name."""
    metrics = WorkerMetrics(settings.metrics_names)
    for collector in backend.collectors():
        metrics.registry.register(collector)
    serve_metrics(settings.metrics_port, settings.host, metrics.registry, setting="metrics_port")
    return metrics


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
    intake = KafkaIntake(settings, backend, model, info.id, KafkaMetrics(metrics.meter))
    intake_task = asyncio.create_task(intake.run())
    intake_task.add_done_callback(lambda _: on_failure())  # without its intake, the worker stops
    try:
        yield intake
        await intake.settle()
    finally:
        intake_task.cancel()
        with suppress(asyncio.CancelledError):
            await intake_task


async def _run_worker(
    worker: Worker, intake: KafkaIntake | None, backend: Backend, info: WorkerInfo, settings: Settings
) -> bool:
    """Run until a signal, or until the model is put to sleep; return whether it was. Raises EngineFailed."""
    loop = asyncio.get_running_loop()
    stopping = False

    def drain(grace: float | None = None) -> None:
        worker.drain(grace)
        if intake is not None:
            intake.drain()

    def stop(grace: float | None) -> None:
        nonlocal stopping
        stopping = True
        drain(grace)

    settle()
    falling_asleep = asyncio.create_task(wait_until_asleep(backend, info.model))
    falling_asleep.add_done_callback(lambda task: None if task.cancelled() else drain())
    try:
        async with stopping_by(settings, backend, lambda: (info.id,), stop):
            await worker.run()
    except BaseExceptionGroup as group:
        error = _first_of(group)
        if isinstance(error, EngineHung):
            _exit_unhealthy(error)
        raise EngineFailed(f"the worker stopped: {error!r}") from group
    finally:
        asleep = falling_asleep.done() and not stopping
        falling_asleep.cancel()
    log.info("worker_stopped", worker=info.id)
    if asleep:
        falling_asleep.result()  # raises its error, if that is why it is done
        for signal_number in SIGNALS:
            loop.remove_signal_handler(signal_number)  # from now on, a signal ends the process at once
    return asleep


async def _announce(info: WorkerInfo, backend: Backend, settings: Settings) -> None:
    """Send the first heartbeat. Raises ConfigError if the weight contradicts those of the other workers."""
    await backend.registry.beat(info)
    try:
        check_weight(info, await backend.registry.workers(), settings)
    except ConfigError:
        await backend.registry.leave(info.id)
        raise


def _log_ready(info: WorkerInfo, progress: StartupProgress) -> None:
    phases = {name: round(seconds, 3) for name, seconds in progress.seconds.items()}
    log.info(
        "worker_ready",
        worker=info.id,
        model=info.model,
        max_model_len=info.max_model_len,
        seconds=round(progress.total(), 3),
        phases=phases,
    )


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _exit_unhealthy(error: EngineHung) -> NoReturn:
    """End the process at once: the engine's thread cannot be stopped."""
    log.error("worker_unhealthy", reason=str(error), exit_status=UNHEALTHY_STATUS)
    settle_logs()
    os._exit(UNHEALTHY_STATUS)
