"""The asyncio side of a tasks process: one event loop in a thread of its own, on which Celery's threads call.

So that one process holds one set of connections, and a long batch keeps no other task waiting.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec
import structlog
import uvloop

from producer_api.auth.principal import Principal
from producer_api.batch_runner.batch_runner import BatchRun
from producer_api.batch_runner.line_body import CHAT, read_body
from producer_api.batch_runner.lines import job_id, seed_of
from producer_api.batch_runner.run_request import answer
from producer_api.batch_runner.services import Parts
from producer_api.batch_runner.work_folder import remove_all_but
from producer_api.http.open_streams import Stopping
from shared.backend import Backend
from shared.errors import Unavailable
from shared.protocol import PriorityClass
from shared.redis import keys
from shared.settings import Settings

RETRY = 1.0  # seconds before the store is asked again for what wakes us

Result = TypeVar("Result")

log = structlog.get_logger(__name__)


class Host:
    """Runs coroutines for threads.

    Args:
        settings: of the process.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tasks-loop", daemon=True)
        self._room = asyncio.Semaphore(settings.batch_window)
        self._running: set[str] = set()  # batches
        self._calls: set[asyncio.Task[Any]] = set()
        self._draining = False
        self._parts: Parts | None = None

    @property
    def parts(self) -> Parts:
        assert self._parts is not None, "the host was not started"
        return self._parts

    def start(self, wake: Callable[[str], None]) -> None:
        """Connect; `wake` is told, in a thread, the id of each batch that was made or cancelled.

        Raises Unavailable when Redis does not answer.
        """
        self._thread.start()
        self._submit(self._open()).result()
        for work in (self.parts.ends.listen(), self._listen(wake)):
            self._submit(self._for_ever(work))

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Its result, once it has one. Raises what it raises, and Stopping when the process drains."""
        return self._submit(self._attend(work)).result()

    def drain(self) -> None:
        """Take no more work, and give back what is under way. May be called by a signal's handler."""
        self._loop.call_soon_threadsafe(self._end_calls)

    def close(self) -> None:
        self._submit(self.parts.backend.close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _open(self) -> None:
        backend = Backend.open(self._settings)
        await backend.start()
        self._parts = Parts.of(self._settings, backend)

    async def _attend(self, work: Coroutine[Any, Any, Result]) -> Result:
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

    async def _for_ever(self, work: Coroutine[Any, Any, None]) -> None:
        """Without it the process could not go on: stop it, for its supervisor to start anew."""
        try:
            await work
        except Exception:
            log.exception("tasks_broken")
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    async def _listen(self, wake: Callable[[str], None]) -> None:
        while True:
            try:
                async with self.parts.backend.live.subscribe(keys.BATCH_WAKE) as messages:
                    while True:
                        message = await messages.get(None)
                        if isinstance(message, bytes):  # what was missed, upkeep finds
                            await asyncio.to_thread(wake, message.decode(errors="replace"))
            except Unavailable as error:
                log.warning("tasks_not_woken", error=error.message)
                await asyncio.sleep(RETRY)

    # what the tasks do

    async def run_batch(self, batch_id: str) -> None:
        """Work on a batch, unless this process does so already. Raises HeadraceError."""
        if batch_id in self._running:
            return
        self._running.add(batch_id)
        try:
            record = await self.parts.batches.get(batch_id)
            await BatchRun(self.parts, record, self._room).run()
        finally:
            self._running.discard(batch_id)

    async def generate(self, task_id: str, body: bytes) -> Any:
        """A chat completion; the same task again is the same request. Raises HeadraceError."""
        asked = read_body(CHAT, body, tenant="default")
        if not asked.classed:
            asked = asked.in_class(PriorityClass.BATCH)
        now = await self.parts.backend.token_log.now()
        limit = min(self._settings.tasks_redelivery, self._settings.max_timeout)
        asked = asked.until(now + min(limit, asked.timeout or limit))
        seed = seed_of(task_id) if asked.seed is None else asked.seed
        found = await answer(
            self.parts, asked, job_id=job_id(task_id, 0), seed=seed, principal=Principal("default")
        )
        return msgspec.to_builtins(found)

    async def idle_batches(self) -> list[str]:
        """Those that have work which nobody does, neither here nor elsewhere."""
        return list(await self.parts.batches.idle())

    async def tidy(self) -> None:
        """Delete files that have ended, and what batches left on the disk. Raises Unavailable."""
        if removed := await self.parts.files.sweep():
            log.info("files_removed", count=removed)
        still = frozenset(await self.parts.batches.open())
        await asyncio.to_thread(remove_all_but, self._settings.files / "batches", still)
