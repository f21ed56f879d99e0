"""A worker's life: pull what the engine has room for, write what it makes, acknowledge what has ended.

One task pulls, one writes, one keeps the leases, one listens for cancellations. The engine runs in its own thread.
"""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from shared import keys
from shared.backend import Backend
from shared.config import Settings
from shared.delivery.base import Append
from shared.delivery.pubsub import Subscription
from shared.errors import HeadraceError, InvalidRequest, RequestAbandoned, Unavailable
from shared.protocol import Request
from shared.registry import WorkerInfo
from shared.transports.base import Delivery, Undecodable
from workers.active import ActiveRequest, by_run, sequences
from workers.engine.interface import EngineOutput, Generator
from workers.engine_loop import EngineLoop
from workers.leases import LeaseKeeper
from workers.metrics import WorkerMetrics

POLL = 1.0  # seconds after which the queue is looked at although nobody said that there is something
RETRY = 0.25

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
        self._encoder = engine.tokenizer
        self._loop = asyncio.get_running_loop()
        self._outputs = asyncio.Event()
        self._room = asyncio.Event()
        self._engine = EngineLoop(engine, lambda: self._loop.call_soon_threadsafe(self._outputs.set))
        self._active: dict[str, ActiveRequest] = {}
        self._draining = asyncio.Event()
        self._leases = LeaseKeeper(backend, settings.lease, self._heartbeat, self._held, self._lost)

    async def run(self) -> None:
        """Work until `drain` is called and its grace is over, or until the engine fails, which is raised."""
        self._engine.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(self._write()),
                    tasks.create_task(self._leases.run()),
                    tasks.create_task(self._listen()),
                ]
                puller = tasks.create_task(self._pull())
                await self._draining.wait()
                await puller  # it ends between two requests, so that none is left half begun
                await self._finish()
                for task in background:
                    task.cancel()
            await self._hand_over()
        finally:
            await asyncio.to_thread(self._engine.stop)

    def drain(self) -> None:
        """Pull no more, finish within the grace time, hand the rest back with its tokens."""
        self._info = msgspec.structs.replace(self._info, state="draining")
        self._draining.set()
        self._room.set()

    # pulling

    async def _pull(self) -> None:
        async with self._backend.live.subscribe(keys.wake_channel(self._info.model)) as woken:
            while not self._draining.is_set():
                try:
                    got = await self._fill()
                except Unavailable:
                    await asyncio.sleep(RETRY)
                    continue
                if not got:
                    await self._something(woken)

    async def _fill(self) -> int:
        room = self._settings.max_num_seqs - sequences(self._active)
        if room <= 0:
            return 0
        model, me = self._info.model, self._info.id
        found = await self._backend.transport.claim(model, me, room)
        if room > len(found):
            found += await self._backend.transport.pull(model, me, room - len(found))
        for item in found:
            await self._start(item)
        return len(found)

    async def _something(self, woken: Subscription) -> None:
        """Until the queue was published to while there is room, room was made, or POLL has passed."""
        if self._draining.is_set():
            return
        self._room.clear()
        full = sequences(self._active) >= self._settings.max_num_seqs
        waits: list[asyncio.Future[object]] = [asyncio.ensure_future(self._room.wait())]
        if not full:
            waits.append(asyncio.ensure_future(woken.get(POLL)))
        try:
            await asyncio.wait(waits, timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _start(self, item: Delivery | Undecodable) -> None:
        if isinstance(item, Undecodable):
            log.error("undecodable_message", entry=item.ticket.entry, reason=item.reason)
            await self._backend.transport.acknowledge(item.ticket)
            return
        request = item.request
        self._drop(request.id)  # it may be ours from before our lease passed
        if item.attempt > self._settings.max_attempts:
            reason = f"set aside: {self._settings.max_attempts} workers were lost while they ran it"
            await self._backend.token_log.close(request.id, RequestAbandoned(reason))
            await self._backend.transport.acknowledge(item.ticket)
            return
        lease = await self._backend.token_log.acquire(request.id, self._info.id)
        if lease is None:
            await self._backend.transport.acknowledge(item.ticket)
            return
        held = ActiveRequest(item, lease)
        self._active[request.id] = held
        self._metrics.started(request, lease)
        await self._admit(held)

    async def _admit(self, held: ActiveRequest) -> None:
        request = held.delivery.request
        try:
            held.prompt = await asyncio.to_thread(self._encode, request)
        except HeadraceError as error:
            await self._append([(held, [EngineOutput(held.run, finished=True, error=error)])])
            return
        rest = self._info.max_model_len - len(held.prompt)
        resumed = held.resume(min(rest * request.params.n, self._settings.log_tokens))
        if resumed is None:
            await self._append([(held, [EngineOutput(held.run, finished=True)])])
        else:
            self._engine.add(resumed)

    def _encode(self, request: Request) -> tuple[int, ...]:
        if request.messages is not None:
            ids = self._encoder.encode_chat(request.messages)
        elif isinstance(request.prompt, str):
            ids = self._encoder.encode(request.prompt)
        else:
            ids = list(request.prompt or ())
        if not ids:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        return tuple(ids)

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
        appends = [held.append(outputs) for held, outputs in grouped]
        for (held, _), append, written in zip(grouped, appends, await self._insist(appends), strict=True):
            if not written:
                self._lost(held)
                continue
            self._metrics.appended(held, append)
            if append.event.terminal:
                self._active.pop(held.id, None)
                self._room.set()
                await self._acknowledge(held)

    async def _insist(self, appends: list[Append]) -> list[bool]:
        while True:
            try:
                return await self._backend.token_log.append(appends)
            except Unavailable as error:
                log.warning("log_unavailable", error=error.message)
                await asyncio.sleep(RETRY)

    async def _acknowledge(self, held: ActiveRequest) -> None:
        """A message whose acknowledgement fails comes again, and is found to have ended."""
        try:
            await self._backend.transport.acknowledge(held.delivery.ticket)
        except Unavailable as error:
            log.warning("acknowledge_failed", request_id=held.id, error=error.message)

    # letting go

    async def _listen(self) -> None:
        """Stop what was cancelled; its end is in the log already."""
        async with self._backend.live.subscribe(keys.control_channel(self._info.id)) as cancelled:
            while True:
                message = await cancelled.get(None)
                if isinstance(message, bytes) and (held := self._drop(message.decode())):
                    self._metrics.cancelled(held)
                    await self._acknowledge(held)

    def _held(self) -> list[ActiveRequest]:
        return list(self._active.values())

    def _lost(self, held: ActiveRequest) -> None:
        log.warning("lease_lost", request_id=held.id, epoch=held.lease.epoch)
        self._drop(held.id)

    def _drop(self, request_id: str) -> ActiveRequest | None:
        held = self._active.pop(request_id, None)
        if held is not None:
            self._engine.abort(held.run)
            self._room.set()
        return held

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(self._settings.grace):
                while self._active:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            log.info("grace_over", handed_back=len(self._active))

    async def _hand_over(self) -> None:
        """Only of our own will: what a failing engine held is left to the lease, and counts as a lost worker."""
        tickets = [held.delivery.ticket for held in self._held()]
        self._active.clear()
        try:
            await self._backend.transport.release(self._info.model, self._info.id, tickets)
            await self._backend.registry.leave(self._info.id)
        except Unavailable as error:
            log.warning("hand_over_failed", error=error.message, requests=len(tickets))

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
