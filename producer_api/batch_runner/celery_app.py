"""The Celery application: which tasks there are, and how they are delivered. JSON only, never pickle.

Every task may come twice: a batch's work is held under leases, and a request's id is derived from what asks for it.
"""

from __future__ import annotations

import json
from typing import Any

from celery import Celery, Task

from producer_api.batch_runner.broker import broker_url
from producer_api.batch_runner.event_loop_host import Host
from producer_api.batch_runner.redis_transport import tolerate
from producer_api.http.open_streams import Stopping
from shared.errors import Unavailable
from shared.redis.foreign import ForeignEntries
from shared.settings import Settings

QUEUE = "headrace"
PREFIX = "hr:celery:"  # of all keys: the Redis user may touch none but hr:*
START_EVERY = 1.0  # seconds between looks for batches without a runner
TIDY_EVERY = 60.0
STALE = 10.0  # seconds after which nobody need look any more, by clocks that may differ
RESTORE_EVERY = 10.0  # seconds between looks for tasks whose process was lost


def make_app(settings: Settings, host: Host) -> Celery:
    """The application of one tasks process. Raises ConfigError for a Redis that Celery cannot use."""
    broker = broker_url(settings)
    result = settings.tasks_result_url
    tolerate(ForeignEntries())
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
        "global_keyprefix": PREFIX,
        "visibility_timeout": settings.tasks_redelivery,
        "unacked_restore_interval": RESTORE_EVERY,
        "unacked_restore_throttle": 1,  # kombu would look in each tenth interval only
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
        "result_backend_transport_options": {"global_keyprefix": PREFIX},
        "result_expires": settings.result_ttl,
        "beat_schedule": {
            "start": {
                "task": "headrace.batch.start",
                "schedule": START_EVERY,
                "options": {"expires": STALE},
            },
            "tidy": {"task": "headrace.upkeep", "schedule": TIDY_EVERY, "options": {"expires": TIDY_EVERY}},
        },
    }


def _add_tasks(app: Celery, host: Host) -> None:
    @app.task(name="headrace.generate", bind=True, max_retries=None)
    def generate(self: Task, body: dict[str, Any]) -> Any:
        """A chat completion for the body of POST /v1/chat/completions."""
        try:
            return host.call(host.generate(self.request.id, json.dumps(body).encode()))
        except (Stopping, Unavailable) as error:
            raise self.retry(exc=error, countdown=1) from None

    @app.task(name="headrace.batch.run", ignore_result=True)
    def run_batch(batch_id: str) -> None:
        """Work on a batch until nothing is left that nobody does; a process that stops gives it back."""
        try:
            host.call(host.run_batch(batch_id))
        except Stopping:
            return

    @app.task(name="headrace.batch.start", ignore_result=True)
    def start_batches() -> None:
        """Start a runner for each batch with work that nobody does."""
        for batch_id in host.call(host.idle_batches()):
            run_batch.apply_async((batch_id,), expires=TIDY_EVERY)

    @app.task(name="headrace.upkeep", ignore_result=True)
    def tidy() -> None:
        """Remove expired files, and what is left of batches."""
        host.call(host.tidy())
