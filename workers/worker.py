"""A worker's life: take what the engine has room for, write what it makes, acknowledge what has ended.

One task takes in, one writes, one acknowledges, one keeps the leases, one listens for cancellations. The engine
runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import secrets
from collections.abc import Sequence

import msgspec
import structlog

from shared.backend import Backend
from shared.errors import EngineFailed, HeadraceError, InvalidRequest, Unavailable
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Request
from shared.queue.interface import Claim, Delivery, Room
from shared.redis import keys
from shared.settings import Settings
from shared.token_log.interface import OVERDUE, Append, Lease
from shared.validation.request_limits import check_task
from workers.active_request import ActiveRequest, by_run
from workers.engine.interface import Constraint, EngineOutput, EngineRequest, Form, Generator
from workers.engine.stage import Stage
from workers.engine_thread import EngineLoop
from workers.lease_keeper import LeaseKeeper
from workers.metrics import WorkerMetrics
from workers.prompt_encoding import Encoding
from workers.puller import RETRY, Intake, set_aside
from workers.seat_allocation import room
from workers.sole_request import Solitude

GATHER = 0.01  # seconds for which ends gather before they are acknowledged together

log = structlog.get_logger(__name__)


class Worker:
    """Serves one model.

    Args:
        info: who this worker is; its load is filled in with each heartbeat.
        engine: loaded, and from now on this worker's.
    """

    def __init__(
        self, info: WorkerInfo, engine: Generator, backend: Backend, settings: Settings, metrics: WorkerMetrics
    ) -> None:
        self._info = info
        self._backend = backend
        self._settings = settings
        self._metrics = metrics
        self._encoding = Encoding(engine.tokenizer, engine.max_model_len)
        self._constraints = engine.constraints
        self._admitting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._outputs = asyncio.Event()
        self._emptied = asyncio.Event()
        self._engine = EngineLoop(engine, lambda: self._loop.call_soon_threadsafe(self._outputs.set))
        self._active: dict[str, ActiveRequest] = {}
        self._done: list[Claim] = []
        self._ended = asyncio.Event()
        self._draining = asyncio.Event()
        self._secret = secrets.token_bytes(32)  # the prefix cache lives and dies with this process
        solitude = Solitude(backend.token_log, self._held)
        self._leases = LeaseKeeper(
            backend, settings.lease, self._heartbeat, self._held, self._lost, solitude=solitude
        )
        self._intake = Intake(
            backend,
            settings,
            model=info.model,
            worker=info.id,
            room=self._room,
            begin=self._begin,
            displace=self._drop,  # it may be ours from before our lease passed
            solitude=solitude,
        )

    async def run(self) -> None:
        """Work until `drain` is called and its grace is over, or until the engine fails, which is raised."""
        self._engine.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                background = [
                    tasks.create_task(self._write()),
                    tasks.create_task(self._acknowledge()),
                    tasks.create_task(self._leases.run()),
                    tasks.create_task(self._listen()),
                ]
                taking = tasks.create_task(self._intake.run())
                await self._draining.wait()
                await taking  # it ends between two rounds, so that none is left half begun
                await self._finish()
                for task in (*background, *self._admitting):
                    task.cancel()
            await self._hand_over()
        finally:
            self._encoding.close()
            await asyncio.to_thread(self._engine.stop)

    def drain(self) -> None:
        """Pull no more, finish within the grace time, hand the rest back with its tokens."""
        self._info = msgspec.structs.replace(self._info, state="draining")
        self._draining.set()
        self._intake.close()

    # beginning

    def _room(self) -> Room:
        return room((held.delivery.request for held in self._held()), self._settings.max_num_seqs)

    async def _begin(self, taken: Sequence[tuple[Delivery, Lease]]) -> None:
        """Take each in, in order, and wait for none: neither for its text nor for its grammar."""
        for delivery, lease in taken:
            held = self._active[delivery.request.id] = ActiveRequest(delivery, lease)
            self._metrics.started(delivery.request, lease)
            task = self._tasks.create_task(self._admit(held))
            self._admitting.add(task)
            task.add_done_callback(self._admitting.discard)

    async def _admit(self, held: ActiveRequest) -> None:
        try:
            with Stage("preparation", held.id):
                ready = await self._prepare(held)
        except HeadraceError as error:
            ready = EngineOutput(held.run, finished=True, error=error)
        if self._active.get(held.id) is not held:  # it was cancelled, or lost, meanwhile
            return
        if isinstance(ready, EngineOutput):
            await self._append([(held, [ready])])
            return
        self._engine.add(ready)
        deadline = held.delivery.request.deadline
        if deadline is not None:
            held.alarm = self._loop.call_later(held.time_left(deadline), self._engine.abort, held.run, OVERDUE)

    async def _prepare(self, held: ActiveRequest) -> EngineRequest | EngineOutput:
        """What the engine is to do, or the end of a request that it has nothing to do for. Raises HeadraceError."""
        request = held.delivery.request
        check_task(request, self._info.task)
        if not held.prompt:  # otherwise an earlier run has recorded it
            encoded = await self._encoding.encode(request)
            if encoded.result is not None:
                return EngineOutput(held.run, finished=True, result=encoded.result)
            held.prompt, held.lengths = encoded.prompt, encoded.lengths
        constraint = await self._constrain(held)
        rest = self._info.max_model_len - len(held.prompt)
        resumed = held.resume(min(rest * request.params.n, self._settings.log_tokens), self._salt(request.tenant))
        if resumed is None:
            return EngineOutput(held.run, finished=True)
        if constraint is not None:
            resumed = dataclasses.replace(resumed, matcher=constraint.matcher, reader=constraint.reader)
        return resumed

    async def _constrain(self, held: ActiveRequest) -> Constraint | None:
        """Return what the answer is held to. Raises InvalidRequest, EngineFailed where its grammar has no compiler.

        An answer that has begun was held to its grammar before, so that no limit of compiling refuses it now.
        """
        form = form_of(held.delivery.request)
        if form is None:
            return None
        if self._constraints is None:
            raise InvalidRequest(
                "this worker cannot constrain answers: it has no grammar compiler", param=form.param
            )
        return await asyncio.wrap_future(self._constraints.start(form, proven=bool(held.history)))

    def _salt(self, tenant: str) -> bytes:
        """What keeps a tenant's cached prefixes from being found by another's."""
        return hashlib.blake2b(tenant.encode(), key=self._secret, digest_size=16).digest()

    # writing

    async def _write(self) -> None:
        while True:
            await self._outputs.wait()
            self._outputs.clear()
            runs = {held.run: held for held in self._held()}
            outputs = by_run(self._engine.take())
            if grouped := [(runs[run], found) for run, found in outputs.items() if run in runs]:
                await self._append(grouped)
            if self._engine.failure is not None:
                raise self._engine.failure

    async def _append(self, grouped: list[tuple[ActiveRequest, list[EngineOutput]]]) -> None:
        """Write all in one round trip, however long the log is away; let go of what was refused or has ended."""
        for held, outputs in grouped:
            if isinstance(error := outputs[-1].error, EngineFailed):
                await self._set_aside(held, error)
        appends = [held.append(outputs) for held, outputs in grouped]
        for (held, _), append, written in zip(grouped, appends, await self._insist(appends), strict=True):
            if not written:
                self._lost(held)
                continue
            self._metrics.appended(held, append)
            self._intake.cleared(held.id)
            if append.event.terminal:
                self._let_go(held)

    async def _insist(self, appends: list[Append]) -> list[bool]:
        while True:
            try:
                return await self._backend.token_log.append(appends)
            except Unavailable as error:
                log.warning("log_unavailable", error=error.message)
                await asyncio.sleep(RETRY)

    async def _set_aside(self, held: ActiveRequest, error: HeadraceError) -> None:
        while True:
            try:
                await set_aside(self._backend, held.delivery.request, error, held.lease.losses + 1)
                return
            except Unavailable as outage:
                log.warning("dead_letters_unavailable", error=outage.message)
                await asyncio.sleep(RETRY)

    async def _acknowledge(self) -> None:
        """Off the tokens' path. A message whose acknowledgement fails comes again, and is found to have ended."""
        while True:
            await self._ended.wait()
            await asyncio.sleep(GATHER)
            self._ended.clear()
            done = list(self._done)
            try:
                await self._backend.transport.acknowledge(done)
            except Unavailable as error:
                log.warning("acknowledge_failed", error=error.message, requests=len(done))
            del self._done[: len(done)]

    # letting go

    async def _listen(self) -> None:
        """Stop what was cancelled; its end is in the log already."""
        async with self._backend.live.subscribe(keys.control_channel(self._info.id)) as cancelled:
            while True:
                message = await cancelled.get(None)
                if isinstance(message, bytes) and (held := self._drop(message.decode(errors="replace"))):
                    self._metrics.cancelled(held)
                    self._let_go(held)

    def _held(self) -> list[ActiveRequest]:
        return list(self._active.values())

    def _let_go(self, held: ActiveRequest) -> None:
        """It has ended: another may take its place."""
        self._forget(held.id)
        self._done.append(held.delivery.claim)
        self._ended.set()

    def _lost(self, held: ActiveRequest) -> None:
        log.warning("lease_lost", job_id=held.id, epoch=held.lease.epoch)
        if self._active.get(held.id) is held:  # and not a later run
            self._drop(held.id)

    def _drop(self, job_id: str) -> ActiveRequest | None:
        held = self._forget(job_id)
        if held is not None:
            self._engine.abort(held.run)
        return held

    def _forget(self, job_id: str) -> ActiveRequest | None:
        held = self._active.pop(job_id, None)
        if held is not None and held.alarm is not None:
            held.alarm.cancel()
        self._intake.cleared(job_id)
        if not self._active:
            self._emptied.set()
        self._intake.more_room()
        return held

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(self._settings.grace):
                while self._active:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            log.info("grace_over", handed_back=len(self._active))

    async def _hand_over(self) -> None:
        """Only of our own will: what a failing engine held is left to the lease, and counts as a lost worker."""
        claims = [held.delivery.claim for held in self._held()]
        self._active.clear()
        try:
            await self._backend.transport.acknowledge(self._done)
            await self._backend.transport.release(self._info.model, self._info.id, claims)
            await self._backend.registry.leave(self._info.id)
        except Unavailable as error:
            log.warning("hand_over_failed", error=error.message, requests=len(claims))

    def _heartbeat(self) -> WorkerInfo:
        stats = self._engine.stats
        self._metrics.observe(stats)
        return msgspec.structs.replace(
            self._info,
            running=stats.running,
            waiting=stats.waiting,
            blocks_used=stats.blocks_used,
            blocks_total=stats.blocks_total,
        )


def form_of(request: Request) -> Form | None:
    """What its answer is held to, if to anything."""
    form = Form(request.params.structured_outputs, request.tools)
    return None if form == Form(None) else form
