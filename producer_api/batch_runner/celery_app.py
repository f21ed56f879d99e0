"""Celery application: its tasks and their delivery. JSON only, never pickle.

A task may be delivered twice: the work on a batch is under leases, and the id of a request derives from its task.
"""

from __future__ import annotations

import json
from typing import Any

from celery import Celery, Task

from producer_api.batch_runner.broker import broker_url
from producer_api.batch_runner.event_loop_host import EventLoopHost
from producer_api.batch_runner.redis_transport import use_tolerant_transport
from producer_api.http.open_streams import Stopping
from shared.errors import HeadraceError, Unavailable
from shared.redis.foreign import ForeignEntries
from shared.settings import Settings

QUEUE = "headrace"
KEY_PREFIX = "hr:celery:"  # of all keys: the Redis user may access only hr:*
START_INTERVAL_S = 1.0  # between searches for batches without a runner
TIDY_INTERVAL_S = 60.0
START_EXPIRES_S = 10.0  # a search this old is dropped; clocks may differ
RESTORE_INTERVAL_S = 10.0  # between searches for tasks of lost processes


def make_app(settings: Settings, host: EventLoopHost) -> Celery:
    """Make the application of one process. Raises ConfigError for a Redis that Celery cannot use."""
    broker = broker_url(settings)
    result = settings.tasks_result_url
    use_tolerant_transport(ForeignEntries())
    app = Celery("headrace", set_as_current=False)
    app.conf.update(
        broker_url=broker,
        result_backend=broker if result is None else result.get_secret_value(),
        **_delivery(settings),
    )
    _add_tasks(app, host)
    return app


def _delivery(settings: Settings) -> dict[str, Any]:
    options = {
        "global_keyprefix": KEY_PREFIX,
        "visibility_timeout": settings.tasks_redelivery,
        "unacked_restore_interval": RESTORE_INTERVAL_S,
        "unacked_restore_throttle": 1,  # kombu would search only in every tenth interval
    }
    return {
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "task_default_queue": QUEUE,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": options,
        "result_backend_transport_options": {"global_keyprefix": KEY_PREFIX},
        "result_expires": settings.result_ttl,
        "beat_schedule": {
            "start": {
                "task": "headrace.batch.start",
                "schedule": START_INTERVAL_S,
                "options": {"expires": START_EXPIRES_S},
            },
            "tidy": {
                "task": "headrace.upkeep",
                "schedule": TIDY_INTERVAL_S,
                "options": {"expires": TIDY_INTERVAL_S},
            },
        },
    }


def _add_tasks(app: Celery, host: EventLoopHost) -> None:
    # `shared`: otherwise every other application of this process would get these tasks. `throws`: what the caller
    # did wrong is its result, and no error in the log.
    @app.task(name="headrace.generate", shared=False, bind=True, max_retries=None, throws=(HeadraceError,))
    def generate(self: Task, body: dict[str, Any]) -> Any:
        """Return a chat completion for the body of POST /v1/chat/completions."""
        try:
            return host.call(host.generate(self.request.id, json.dumps(body).encode(), _traceparent(self)))
        except (Stopping, Unavailable) as error:
            raise self.retry(exc=error, countdown=1) from None

    @app.task(name="headrace.batch.run", shared=False, ignore_result=True)
    def run_batch(batch_id: str) -> None:
        """Work on a batch until nothing is left to claim. A process that stops releases its items."""
        try:
            host.call(host.run_batch(batch_id))
        except Stopping:
            return

    @app.task(name="headrace.batch.start", shared=False, ignore_result=True)
    def start_batches() -> None:
        """Start a runner for each batch with unclaimed work."""
        for batch_id in host.call(host.idle_batches()):
            run_batch.apply_async((batch_id,), expires=TIDY_INTERVAL_S)

    @app.task(name="headrace.upkeep", shared=False, ignore_result=True)
    def tidy() -> None:
        """Remove expired files and the folders of ended batches."""
        host.call(host.tidy())


def _traceparent(task: Task) -> str:
    """Return the header of a task that OpenTelemetry's instrumentation of Celery adds; empty without it."""
    given = (task.request.headers or {}).get("traceparent")
    return given if isinstance(given, str) else ""
