"""Worker: pull the requests that the engine has room for, append its outputs, acknowledge what has ended.

One task pulls, one appends, one acknowledges, one renews the leases, one listens for cancellations, one watches the
engine. The engine runs in a separate thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec
import structlog

from shared.backend import Backend
from shared.errors import HeadraceError, Unavailable
from shared.models.worker_registry import WorkerInfo
from shared.queue.interface import Claim, Delivery, Room
from shared.redis import keys
from shared.settings import Settings
from shared.token_log.interface import OVERDUE, Lease
from shared.token_log.listener import listen
from workers.active_request import ActiveRequest, AppendTally, merge_by_run
from workers.answer_writer import AnswerWriter
from workers.departure import Departure
from workers.engine.interface import EngineLost, EngineOutput, Generator
from workers.engine.lora.interface import reader_of
from workers.engine.stage import Stage
from workers.engine_thread import EngineThread
from workers.health.canary import Canary
from workers.health.notifier import NO_SUPERVISOR, Notifier
from workers.health.watchdog import EngineHung, Watchdog
from workers.lease_keeper import LeaseKeeper
from workers.load_meter import LoadMeter, tokens_in_flight
from workers.lora.service import WorkerAdapters
from workers.metrics import WorkerMetrics
from workers.model_claim import ModelClaim
from workers.preparation.preparer import preparer_for
from workers.puller import Puller
from workers.run_spans import spans_of_run
from workers.seat_allocation import free_seats
from workers.sole_request import SoleRequestRecord
from workers.stopping.grace import Grace

ACKNOWLEDGE_DELAY_S = 0.01  # so that requests that end together are acknowledged in one call

log = structlog.get_logger(__name__)


class Worker:
    """Serves one model.

    Args:
        info: this worker's registry entry; each heartbeat adds the current load.
        engine: loaded; from now on only this worker uses it.
        notifier: tells the supervisor of this process that it responds.
        sole_request: of a process with several workers, which they share; None for the process' only worker.

    Attributes:
        adapters: the LoRA adapters of its requests.
    """

    def __init__(
        self,
        info: WorkerInfo,
        engine: Generator,
        backend: Backend,
        settings: Settings,
        metrics: WorkerMetrics,
        *,
        notifier: Notifier = NO_SUPERVISOR,
        sole_request: SoleRequestRecord | None = None,
    ) -> None:
        self.id = info.id
        self._info = info
        self._backend = backend
        self._settings = settings
        self._grace = Grace(settings.grace)
        self._metrics = metrics
        self._preparer = preparer_for(engine, info, settings)
        self.adapters = WorkerAdapters(reader_of(engine), backend, info, settings, metrics)
        self._answers = AnswerWriter(backend, engine, metrics, recording_bytes=settings.recording_bytes)
        self._starting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._output_ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._engine = EngineThread(engine, lambda: self._loop.call_soon_threadsafe(self._output_ready.set))
        metrics.watch(info.model, self._engine)
        self._watchdog = Watchdog(self._engine, settings.step_timeout, notifier)
        self._canary = Canary(
            info, self._engine, self._preparer, metrics, interval=settings.canary_interval, idle=self._is_unused
        )
        self._by_job: dict[str, ActiveRequest] = {}
        self._by_run: dict[str, ActiveRequest] = {}
        self._used_at = time.monotonic()
        self._load = LoadMeter(settings.max_num_seqs)
        self._finished_claims: list[Claim] = []
        self._departure = Departure(backend, info.model, info.id, self._finished_claims)
        self._claims_ready = asyncio.Event()
        self._draining = asyncio.Event()
        sole_request = sole_request or SoleRequestRecord(backend.token_log, self.active_requests)
        self._leases = LeaseKeeper(
            backend,
            settings.lease,
            self._heartbeat,
            self.active_requests,
            self._on_lease_lost,
            sole_request=sole_request,
            claim=ModelClaim.from_settings(backend.locks, info, settings),
        )
        self._puller = self._make_puller(sole_request)

    def _make_puller(self, sole_request: SoleRequestRecord) -> Puller:
        return Puller(
            self._backend,
            self._settings,
            self._metrics,
            model=self._info.model,
            worker=self._info.id,
            room=self._free_seats,
            start_runs=self._start_runs,
            drop_run=self._abort,  # this worker may still run it under a lease that has expired
            sole_request=sole_request,
        )

    async def run(self) -> None:
        """Work until `drain` is called and the grace time is over.

        Raises the failure of the engine, in a group. After EngineHung and EngineLost, the process must end.
        """
        self._engine.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watchdog.run())
                await self._work()
                watching.cancel()
        except* EngineHung:
            await self._give_up("engine_hung")
            raise
        except* EngineLost:
            await self._give_up("failed")
            raise

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                jobs = [self._append_outputs(), self._acknowledge(), self._leases.run(), self.adapters.run()]
                jobs.append(listen(self._backend.live, keys.control_channel(self._info.id), self._cancel))
                background = [tasks.create_task(job) for job in jobs]
                if self._settings.canary_interval:
                    background.append(tasks.create_task(self._canary.run()))
                pulling = tasks.create_task(self._puller.run())
                await self._draining.wait()
                await pulling  # it ends between two rounds, so that no request is begun in part
                await self._departure.leave_queue()
                await self._wait_until_idle()
                for task in (*background, *self._starting):
                    task.cancel()
            await self._hand_over()
        finally:
            self._preparer.close()
            await asyncio.to_thread(self._engine.stop)

    def active_requests(self) -> list[ActiveRequest]:
        """Return the requests that it holds."""
        return list(self._by_job.values())

    @property
    def used_at(self) -> float:
        """Return when it held a request last, by time.monotonic; when it was made, if it never did."""
        return time.monotonic() if self._by_job else self._used_at

    def drain(self, grace: float | None = None) -> None:
        """Stop pulling, finish within `grace` seconds, and hand back the rest; a second call shortens it."""
        if grace is not None:
            self._grace.shorten(grace)
        self._info = msgspec.structs.replace(self._info, state="draining")
        self._draining.set()
        self._puller.close()

    def _is_unused(self) -> bool:
        return self._info.state == "ready" and not self._by_job and not self._engine.stats.fault

    # starting runs

    def _free_seats(self) -> Room:
        capacity = 0 if self._engine.stats.fault else self._settings.max_num_seqs
        return free_seats((active.delivery.request for active in self.active_requests()), capacity)

    async def _start_runs(self, taken: Sequence[tuple[Delivery, Lease]]) -> None:
        """Start each request, in order, without waiting for its tokenizing or its grammar."""
        for delivery, lease in taken:
            active = self._by_job[delivery.request.id] = ActiveRequest(delivery, lease)
            self._by_run[active.run_id] = active
            active.spans = spans_of_run(self._backend.tracer, delivery, lease)
            self._metrics.count_start(active)
            task = self._tasks.create_task(self._start(active))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start(self, active: ActiveRequest) -> None:
        try:
            with Stage("preparation", job_id=active.id, run_id=active.run_id):
                prepared = await self._preparer.prepare(active)
                if self._by_job.get(active.id) is active:  # else its wait for an adapter would not be ended
                    prepared = await self.adapters.attach(prepared, active)
        except HeadraceError as error:
            prepared = EngineOutput(active.run_id, finished=True, error=error)
        if self._by_job.get(active.id) is not active:  # it was cancelled or lost in the meantime
            self.adapters.release(active.run_id)
            return
        if isinstance(prepared, EngineOutput):
            await self._append([(active, prepared)])
            return
        self._engine.add(prepared)
        active.enter_engine()
        deadline = active.delivery.request.deadline
        if deadline is not None:
            active.deadline_timer = self._loop.call_later(
                active.time_left(deadline), self._engine.abort, active.run_id, OVERDUE
            )

    # appending outputs

    async def _append_outputs(self) -> None:
        while True:
            await self._output_ready.wait()
            self._output_ready.clear()
            outputs = merge_by_run(self._engine.take())
            self._canary.observe(outputs)
            if found := [(run, each) for each in outputs if (run := self._by_run.get(each.job_id)) is not None]:
                await self._append(found)
            if self._engine.failure is not None:
                raise self._engine.failure

    async def _append(self, outputs: list[tuple[ActiveRequest, EngineOutput]]) -> None:
        """Append all outputs in one round trip, retrying while Redis is away; remove what has ended."""
        written, refused = await self._answers.append(outputs)
        for active in refused:
            self._metrics.count_fenced_write(self._info.model)
            self._on_lease_lost(active)
        now = time.monotonic()
        tally = AppendTally.take(written, now)
        self._metrics.count_appends(tally, now)
        self._load.record(tally, now)
        self._puller.clear(active.id for active, _ in written)
        for active, append in written if self._backend.tracer else ():
            active.spans.record(append.event)
        for active, append in tally.ended:
            if append.event.terminal is not None:
                self._complete(active)

    async def _acknowledge(self) -> None:
        """Acknowledge finished requests, off the path of the tokens.

        If it fails, the message is delivered again, and its next worker finds that the request has ended.
        """
        while True:
            await self._claims_ready.wait()
            await asyncio.sleep(ACKNOWLEDGE_DELAY_S)
            self._claims_ready.clear()
            done = list(self._finished_claims)
            try:
                await self._backend.transport.acknowledge(done)
            except Unavailable as error:
                log.warning("acknowledge_failed", error=error.message, requests=len(done))
            del self._finished_claims[: len(done)]

    # ending runs

    def _cancel(self, message: bytes) -> None:
        """Stop a request that was cancelled, by its id; its terminal event is in the log already."""
        if active := self._abort(message.decode(errors="replace"), "cancelled"):
            self._metrics.count_cancellation(active)
            self._complete(active)

    def _complete(self, active: ActiveRequest) -> None:
        """Remove a request that has ended, and have it acknowledged."""
        self._remove(active.id, "")
        self._finished_claims.append(active.delivery.claim)
        self._claims_ready.set()

    def _on_lease_lost(self, active: ActiveRequest) -> None:
        log.warning("lease_lost", job_id=active.id, run_id=active.run_id)
        if self._by_job.get(active.id) is active:  # and not a later run of the same job
            self._metrics.count_lease_lost(self._info.model)
            self._abort(active.id)

    def _abort(self, job_id: str, outcome: str = "lease_lost") -> ActiveRequest | None:
        active = self._remove(job_id, outcome)
        if active is not None:
            self._engine.abort(active.run_id)
        return active

    def _remove(self, job_id: str, outcome: str) -> ActiveRequest | None:
        """Remove a request, whose run has the `outcome` if no terminal event ended it."""
        active = self._by_job.pop(job_id, None)
        if active is not None:
            self._by_run.pop(active.run_id, None)
            self.adapters.release(active.run_id)
            active.spans.end(outcome)
            if active.deadline_timer is not None:
                active.deadline_timer.cancel()
        self._puller.clear((job_id,))
        self._used_at = time.monotonic()
        if not self._by_job:
            self._idle.set()
        self._puller.room_changed()
        return active

    async def _wait_until_idle(self) -> None:
        try:
            await self._grace.wait(lambda: not self._by_job, self._idle)
        except TimeoutError:
            log.info("grace_over", handed_back=len(self._by_job))

    async def _hand_over(self) -> None:
        claims = [active.delivery.claim for active in self.active_requests()]
        for active in self.active_requests():
            self._remove(active.id, "handed_over")
        await self._departure.hand_over(claims)

    async def _give_up(self, outcome: str) -> None:
        self._info = msgspec.structs.replace(self._info, state="hung")
        ran = [active.delivery.claim for active in self.active_requests() if active.in_engine]
        others = [active.delivery.claim for active in self.active_requests() if not active.in_engine]
        for active in self.active_requests():
            self._remove(active.id, outcome)
        await self._departure.give_up(ran, others, self._heartbeat())

    def _heartbeat(self) -> WorkerInfo:
        stats, step_age = self._engine.stats, self._engine.step_age()
        return msgspec.structs.replace(
            self._info,
            active_requests=len(self._by_job),
            step_age=None if step_age is None else round(step_age, 3),
            gpu_memory_used=stats.gpu_memory_used,
            fault=stats.fault,
            running=stats.running,
            waiting=stats.waiting,
            blocks_used=stats.blocks_used,
            blocks_total=stats.blocks_total,
            tokens_in_flight=tokens_in_flight(self.active_requests()),
            tokens_per_s=self._load.tokens_per_s(),
            first_token_s=self._load.first_token_s,
        )
