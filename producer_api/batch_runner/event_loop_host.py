"""Event loop of a batch-runner process, in its own thread; Celery's threads run coroutines on it.

So a process has one set of connections, and a long batch does not delay other tasks.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog
import uvloop

from producer_api.auth.client_address import Client
from producer_api.auth.principal import Principal
from producer_api.batch_runner.batch_runner import BatchRunner
from producer_api.batch_runner.line_body import CHAT, read_body
from producer_api.batch_runner.lines import seed_of
from producer_api.batch_runner.run_request import reached, run
from producer_api.batch_runner.services import BatchServices
from producer_api.batch_runner.work_folder import batches_with_folders, remove_all
from producer_api.http.open_streams import Stopping
from shared.backend import Backend
from shared.errors import NotFound
from shared.metrics.http import serve_metrics
from shared.protocol import PriorityClass, line_job_id
from shared.redis import keys
from shared.runtime.retry import run_forever
from shared.settings import Settings
from shared.tracing.opening import open_tracer
from shared.tracing.trace_context import valid_traceparent

RETRY_DELAY_S = 1.0  # before subscribing to new batches again

Result = TypeVar("Result")

log = structlog.get_logger(__name__)


class EventLoopHost:
    """Runs coroutines for Celery's threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tasks-loop", daemon=True)
        self._room = asyncio.Semaphore(settings.batch_window)
        self._running: set[str] = set()  # batches
        self._calls: set[asyncio.Task[Any]] = set()
        self._background: list[Future[None]] = []
        self._draining = False
        self._services: BatchServices | None = None

    @property
    def services(self) -> BatchServices:
        assert self._services is not None, "the host was not started"
        return self._services

    def start(self, wake: Callable[[str], None]) -> None:
        """Connect to Redis. `wake` is called in a thread with the id of each created or cancelled batch.

        Raises Unavailable if Redis does not answer.
        """
        self._thread.start()
        self._submit(self._open()).result()
        listen = run_forever(partial(self._listen, wake), pause_s=RETRY_DELAY_S, failure_event="batch_wake_failed")
        for work in (self.services.completions.run(), listen):
            self._background.append(self._submit(self._stop_process_on_failure(work)))

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Return the result of a coroutine. Raises what it raises; Stopping if the process drains."""
        return self._submit(self._cancellable(work)).result()

    def drain(self) -> None:
        """Cancel the calls in progress and accept no new ones. May be called by a signal handler."""
        self._loop.call_soon_threadsafe(self._end_calls)

    def close(self) -> None:
        for work in self._background:
            work.cancel()
        self._submit(self.services.backend.close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _open(self) -> None:
        backend = Backend.open(self._settings, open_tracer(self._settings, "tasks"))
        await backend.start()
        self._services = BatchServices.from_settings(self._settings, backend)
        serve_metrics(
            self._settings.tasks_metrics_port,
            self._settings.host,
            self._services.metrics.registry,
            setting="tasks_metrics_port",
        )

    async def _cancellable(self, work: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.create_task(work)
        self._calls.add(task)
        try:
            if self._draining:
                task.cancel()
            return await task
        except asyncio.CancelledError:
            raise Stopping from None
        finally:
            self._calls.discard(task)

    def _end_calls(self) -> None:
        self._draining = True
        for task in self._calls:
            task.cancel()

    async def _stop_process_on_failure(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work that the process depends on. If it fails, stop the process: its supervisor restarts it."""
        try:
            await work
        except Exception:
            log.exception("background_task_crashed")
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    async def _listen(self, wake: Callable[[str], None]) -> None:
        async with self.services.backend.live.subscribe(keys.BATCH_WAKE) as messages:
            while True:
                message = await messages.get(None)
                if isinstance(message, bytes):  # a periodic task finds batches whose message was lost
                    await asyncio.to_thread(wake, message.decode(errors="replace"))

    # the tasks

    async def run_batch(self, batch_id: str) -> None:
        """Work on a batch, unless this process is already working on it. Raises HeadraceError."""
        if batch_id in self._running:
            return
        self._running.add(batch_id)
        self.services.metrics.running.inc()
        try:
            try:
                record = await self.services.batches.get(batch_id)
            except NotFound:  # another program deleted or overwrote it
                log.error("batch_set_aside", batch=batch_id)
                await self.services.batches.give_up(batch_id)
                return
            await BatchRunner(self.services, record, self._room).run()
        except Exception:
            log.exception("batch_run_failed", batch=batch_id)  # Celery logs the task's id, not the batch's
            raise
        finally:
            self._running.discard(batch_id)
            self.services.metrics.running.dec()

    async def generate(self, task_id: str, body: bytes, traceparent: str = "") -> Any:
        """Return a chat completion, in the trace of `traceparent`. The same task again joins the same request.

        Raises HeadraceError.
        """
        request = read_body(CHAT, body, tenant="default", strict_fields=self._settings.strict_fields)
        request = request.for_model(await reached(self.services.gateway.any_model))
        if not request.classed:
            request = request.in_class(PriorityClass.BATCH)
        now = await reached(self.services.backend.token_log.now)
        limit = min(self._settings.tasks_redelivery, self._settings.max_timeout)
        request = request.until(now + min(limit, request.timeout or limit))
        seed = seed_of(task_id) if request.seed is None else request.seed
        caller = Principal("default", client=Client(traceparent=valid_traceparent(traceparent)))
        answer = await run(self.services, request, job_id=line_job_id(task_id, 0), seed=seed, principal=caller)
        return msgspec.to_builtins(answer)

    async def idle_batches(self) -> list[str]:
        """Return the batches with work that no process has claimed."""
        return list(await self.services.batches.idle())

    async def tidy(self) -> None:
        """Delete expired files, and the folders of ended batches. Raises Unavailable."""
        if removed := await self.services.files.sweep():
            log.info("files_removed", count=removed)
        root = self._settings.files / "batches"
        found = await asyncio.to_thread(batches_with_folders, root)  # first: a batch is open before it has a folder
        await asyncio.to_thread(remove_all, root, found.difference(await self.services.batches.open()))
