"""Batch-runner process: a Celery worker with a pool of threads, and beat in one more thread.

Threads, not Celery's solo pool: while a solo worker runs a batch it takes no other task, neither the periodic ones
that find abandoned work nor `headrace.generate`. The work itself runs on the host's one event loop.
"""

from __future__ import annotations

from typing import Any

import structlog
from celery import signals
from celery.beat import EmbeddedService, Scheduler
from kombu.exceptions import OperationalError

from producer_api.batch_runner.celery_app import TIDY_INTERVAL_S, make_app
from producer_api.batch_runner.event_loop_host import EventLoopHost
from shared.runtime.logging import configure_logging, log_library_warnings
from shared.settings import Settings

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Serve tasks until SIGTERM or SIGINT, then release the work in progress.

    Raises:
        ConfigError: the broker cannot be used.
        Unavailable: Redis does not answer at the start.
    """
    configure_logging(settings, process="tasks")
    log_library_warnings("celery", "kombu")
    host = EventLoopHost(settings)
    app = make_app(settings, host)

    def wake(batch_id: str) -> None:
        try:
            app.send_task("headrace.batch.run", (batch_id,), expires=TIDY_INTERVAL_S)
        except OperationalError as error:  # the next search for idle batches finds it
            log.warning("batch_not_woken", batch=batch_id, error=str(error))

    host.start(wake)
    beat = EmbeddedService(app, thread=True, scheduler_cls=Scheduler)

    def ready(**_: Any) -> None:
        beat.start()
        log.info("tasks_ready", message="Headrace runs tasks")

    def stop(**_: Any) -> None:
        host.drain()

    # strong references: Celery keeps weak ones
    signals.setup_logging.connect(_keep_logging, weak=False)
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(stop, weak=False)
    worker = app.Worker(
        pool="threads",
        concurrency=settings.tasks_concurrency,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    try:
        worker.start()
    finally:
        if beat.is_alive():
            beat.stop()
        host.close()
    log.info("tasks_stopped")


def _keep_logging(**_: Any) -> None:
    """Keep Celery from configuring logging: it does so unless this signal has a receiver."""
