"""Canary: a small request of the worker's own, which proves that an idle engine still computes.

It takes no place in the queue, has no log, and is charged to no tenant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from shared.errors import EngineFailed, HeadraceError
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Pool, Request, SamplingParams
from workers.active_request import ActiveRequest
from workers.engine.interface import EngineOutput
from workers.engine_thread import EngineThread
from workers.health.watchdog import EngineHung
from workers.metrics import WorkerMetrics
from workers.preparation.preparer import Preparer

CANARY_LIMIT_S = 30.0  # for one token of an idle engine; StepWatch finds a step that hangs much sooner
CHECKS_PER_LIMIT = 30
CANARY_ID = "canary"
TEXT = "Hello"

log = structlog.get_logger(__name__)


class Canary:
    """Runs a canary each time that the engine has given no output for `interval` seconds.

    Args:
        info: the worker, whose model the canary asks.
        idle: returns True while the worker is ready and holds no request.
    """

    def __init__(
        self,
        info: WorkerInfo,
        engine: EngineThread,
        preparer: Preparer,
        metrics: WorkerMetrics,
        *,
        interval: float,
        idle: Callable[[], bool],
    ) -> None:
        self._info = info
        self._engine = engine
        self._preparer = preparer
        self._metrics = metrics
        self._interval = interval
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._last_output = self._loop.time()
        self._count = 0
        self._run_id = ""
        self._ended: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Run canaries until cancelled. Raises EngineHung if one fails."""
        while True:
            left = self._last_output + self._interval - self._loop.time()
            if left > 0 or not self._idle():
                await asyncio.sleep(left if left > 0 else self._interval)
                continue
            try:
                await self._run_once()
            except (EngineFailed, TimeoutError) as error:
                self._metrics.count_canary("failed")
                reason = (
                    error.message if isinstance(error, EngineFailed) else f"no answer in {CANARY_LIMIT_S:.0f} s"
                )
                log.error("canary_failed", reason=reason, stack=self._engine.stack())
                raise EngineHung(f"the canary failed: {reason}") from error
            self._metrics.count_canary("completed")

    def observe(self, outputs: Sequence[EngineOutput]) -> None:
        """Note the outputs of the engine."""
        if outputs:
            self._last_output = self._loop.time()
        for output in outputs if self._run_id else ():
            if output.job_id == self._run_id and output.finished:
                self._end(output.error)

    def _end(self, error: HeadraceError | None) -> None:
        self._run_id = ""
        if isinstance(error, EngineFailed):
            self._ended.set_exception(error)
        else:  # a refusal is an answer too
            self._ended.set_result(None)

    async def _run_once(self) -> None:
        self._count += 1
        active = self._request()
        self._run_id, self._ended = active.run_id, self._loop.create_future()
        try:
            async with asyncio.timeout(CANARY_LIMIT_S):
                prepared = await self._preparer.prepare(active)
        except HeadraceError as error:
            prepared = EngineOutput(active.run_id, finished=True, error=error)
        if isinstance(prepared, EngineOutput):
            self.observe([prepared])
        else:
            self._engine.add(prepared)
        await self._answer()

    async def _answer(self) -> None:
        """Wait for the end of the canary. Time counts only while the engine has nothing else to do.

        Raises EngineFailed, TimeoutError.
        """
        checks = 0
        while not self._ended.done():
            if checks == CHECKS_PER_LIMIT:
                raise TimeoutError
            await asyncio.wait([self._ended], timeout=CANARY_LIMIT_S / CHECKS_PER_LIMIT)
            checks = checks + 1 if self._idle() else 0
        self._ended.result()

    def _request(self) -> ActiveRequest:
        """Return a request for one token, or for the output of an encoder, as if it came from the queue."""
        model = self._info.model
        generates = self._info.task == "generate"
        request = Request(
            id=CANARY_ID,
            model=model,
            prompt=TEXT if generates else None,
            work=None if generates else Pool((TEXT,)),
            params=SamplingParams(max_tokens=1),
            tenant=CANARY_ID,
        )
        return ActiveRequest.unqueued(request, self._info.id, self._count)
