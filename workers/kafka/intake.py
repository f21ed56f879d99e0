"""From a topic's record to a place in the lanes, and from a request's end to its result. Runs in the worker's loop.

Each step is idempotent by the request's id, which follows from the record: a record that comes again finds its
request waiting, running or ended. It does not know who runs requests.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import structlog

from shared.backend import Backend
from shared.errors import HeadraceError, PayloadTooLarge, QueueFull, Unavailable
from shared.kafka.message import Order, Outgoing, dead_letter, read_request, result_record
from shared.ledger.store import Behind, Ledger
from shared.ledger.types import Charge, Entry
from shared.models.worker_registry import ModelInfo
from shared.protocol import ErrorInfo, RequestState
from shared.redis import keys
from shared.runtime.retry import run_forever
from shared.schemas.native.jobs import Job
from shared.settings import Settings
from shared.token_log.answer import Answer, read_whole
from shared.token_log.interface import Adoption, RequestRecord
from shared.validation.request_limits import Limits
from workers.engine.stage import Stage
from workers.kafka.consumer_thread import Done, Shuttle, Taken
from workers.kafka.metrics import KafkaMetrics

LOOK = 5.0  # seconds between looks at everything in flight, for ends that nobody told
RETRY = 0.25
TOO_LONG = PayloadTooLarge("the result is too long for its topic: read it by the job's links")
BATCH = 64  # requests published, or answers read, at once

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Flight:
    """An order, and the taking of its record."""

    order: Order
    taken: Taken

    @property
    def id(self) -> str:
        return self.order.request.id

    def adoption(self, *, create: bool) -> Adoption:
        """What the API sent has a log, or was taken back."""
        return Adoption(self.order.request, self.taken.record.source, create=create and not self.order.by_api)

    def is_of(self, record: RequestRecord) -> bool:
        """Otherwise another record came first with the same id."""
        return record.source == self.taken.record.source


class KafkaIntake:
    """Serves one worker's model.

    Args:
        model: as the worker announces it.
        worker: its id, which names the channel that its requests' ends are told on.

    Raises ConfigError for settings that lead to no broker.
    """

    def __init__(
        self, settings: Settings, backend: Backend, model: ModelInfo, worker: str, metrics: KafkaMetrics
    ) -> None:
        self._backend = backend
        self._model = model
        self._limits = Limits.of(settings)
        server = backend.limits if settings.usage else None
        self._ledger = None if server is None else Ledger.of(settings, server)
        self._most_bytes = settings.max_body_bytes
        self._channel = keys.notify_channel(f"kafka:{worker}")
        self._loop = asyncio.get_running_loop()
        self._shuttle = Shuttle(settings, model.name, self._hand_over, self._broken, metrics)
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self._new: deque[Taken] = deque()
        self._read: deque[_Flight] = deque()  # and not yet adopted
        self._waiting: deque[_Flight] = deque()  # for room in the lanes
        self._flights: dict[str, _Flight] = {}  # from adoption to the end
        self._ended: dict[str, None] = {}  # in order
        self._finishing = asyncio.Lock()
        self._came = asyncio.Event()
        self._told = asyncio.Event()

    def _hand_over(self, taken: Sequence[Taken]) -> None:
        """From the shuttle's thread."""
        self._loop.call_soon_threadsafe(self._arrive, taken)

    def _broken(self, error: Exception) -> None:
        """From the shuttle's thread."""
        self._loop.call_soon_threadsafe(self._failure.set_exception, error)

    def _arrive(self, taken: Sequence[Taken]) -> None:
        self._new.extend(taken)
        self._came.set()

    async def run(self) -> None:
        """Until it is cancelled; what is done by then is written, the rest is left to the next owner."""
        self._shuttle.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                listen = run_forever(self._listen, pause_s=RETRY, failure_event="kafka_ends_unavailable")
                tasks.create_task(listen)
                tasks.create_task(self._whenever(self._came, self._take))
                tasks.create_task(self._whenever(self._told, self._finish))
                await self._failure
        finally:
            await asyncio.shield(asyncio.to_thread(self._shuttle.stop))

    def drain(self) -> None:
        """Take no more; results of what was taken are still written."""
        self._shuttle.drain()

    async def _listen(self) -> None:
        """Ends as they are told; and, where one may have been missed, or after LOOK seconds, a look at all."""
        async with self._backend.live.subscribe(self._channel) as told:
            look_at = 0.0
            while True:
                message = await told.get(max(0.01, look_at - time.monotonic()))
                if isinstance(message, bytes):
                    self._note(message.decode(errors="replace"))
                if not isinstance(message, bytes) or time.monotonic() >= look_at:
                    await self._look()
                    look_at = time.monotonic() + LOOK

    def _note(self, job_id: str) -> None:
        if job_id in self._flights:
            self._ended[job_id] = None
            self._told.set()

    async def _look(self) -> None:
        flights = list(self._flights.values())
        for flight, record in zip(flights, await self._adopt(flights, create=False), strict=True):
            if record is None or record.state.terminal:
                self._note(flight.id)

    async def _adopt(self, flights: Sequence[_Flight], *, create: bool) -> list[RequestRecord | None]:
        adoptions = [flight.adoption(create=create) for flight in flights]
        return await self._backend.token_log.adopt(adoptions, self._channel) if adoptions else []

    async def _whenever(self, happened: asyncio.Event, work: Callable[[], Awaitable[bool]]) -> None:
        """`work` after each time that it happened; and again a little later, where it says that there is more."""
        while True:
            await happened.wait()
            happened.clear()
            try:
                left = await work()
            except Unavailable as error:
                log.warning("kafka_intake_unavailable", error=error.message)
                left = True
            if left:
                happened.set()
                await asyncio.sleep(RETRY)

    # taking in

    async def _take(self) -> bool:
        """True where something has to wait for room."""
        await self._take_in()
        return not await self._queue()

    async def _take_in(self) -> None:
        """What is new is read, adopted, and sent on its way by how its log stands."""
        if self._new:
            now = await self._backend.token_log.now()
            while self._new:
                self._decode(self._new.popleft(), now)
        flights = list(self._read)
        records = await self._adopt(flights, create=True)
        for flight, record in zip(flights, records, strict=True):
            self._read.popleft()
            self._begin(flight, record)

    def _decode(self, taken: Taken, now: float) -> None:
        """What is no request is a dead letter."""
        record = taken.record
        try:
            with Stage("reading of a record", record.source):
                order = read_request(record, self._model, self._limits, self._most_bytes, now)
        except HeadraceError as error:
            log.warning("kafka_dead_letter", source=record.source, code=error.code)
            short = partial(dead_letter, record, error, whole=False)
            self._shuttle.finish([Done(taken, dead_letter(record, error), short, error.code)])
        else:
            self._read.append(_Flight(order, taken))

    def _begin(self, flight: _Flight, record: RequestRecord | None) -> None:
        if record is None or not flight.is_of(record):
            self._shuttle.finish([Done(flight.taken)])  # taken back before it came here, or a duplicate
            return
        request = msgspec.structs.replace(
            flight.order.request, created_at=record.created_at, deadline=record.deadline
        )
        flight = replace(flight, order=replace(flight.order, request=request))
        self._flights[flight.id] = flight
        if record.state.terminal:
            self._note(flight.id)
        elif record.state is RequestState.QUEUED:
            self._waiting.append(flight)

    async def _queue(self) -> bool:
        """Into the lanes, as far as there is room; False where something has to wait."""
        while self._waiting:
            batch = list(itertools.islice(self._waiting, BATCH))
            await self._enter(batch)
            places = await self._backend.transport.publish_many([flight.order.request for flight in batch])
            for _ in batch:
                self._waiting.popleft()
            left = [flight for flight, place in zip(batch, places, strict=True) if isinstance(place, HeadraceError)]
            self._waiting.extendleft(reversed(left))
            self._shuttle.hold(any(isinstance(place, QueueFull) for place in places))
            if left:
                return False
        return True

    async def _enter(self, flights: Sequence[_Flight]) -> None:
        """Have their usage recorded; the API has seen to what came by it. Raises Unavailable."""
        charges = [
            Charge(
                each.id,
                Entry(each.order.request.tenant, each.order.request.model, user=each.order.request.user),
                (),
            )
            for each in flights
            if not each.order.by_api
        ]
        if self._ledger is None or not charges:
            return
        try:
            await self._ledger.charge(*charges)
        except Behind:
            raise Unavailable("usage records cannot be written at present") from None

    # giving out

    async def settle(self) -> None:
        """Write what has ended by now, as far as the store can be reached."""
        try:
            await self._look()
            await self._finish()
        except Unavailable as error:
            log.warning("kafka_intake_unavailable", error=error.message)

    async def _finish(self) -> bool:
        async with self._finishing:
            while self._ended:
                ended = [self._flights[each] for each in itertools.islice(self._ended, BATCH)]
                records = await self._adopt(ended, create=False)
                wanted = [flight.id for flight in ended if flight.order.reply is not None]
                answers = dict(zip(wanted, await read_whole(self._backend.token_log, wanted), strict=True))
                outcomes = [
                    self._outcome(flight, record, answers.get(flight.id))
                    for flight, record in zip(ended, records, strict=True)
                ]
                for flight in ended:
                    # another one was taken again meanwhile, and is looked at again
                    if self._flights[flight.id] is flight:
                        del self._flights[flight.id], self._ended[flight.id]
                self._shuttle.finish([done for done in outcomes if done is not None])
        return False

    def _outcome(self, flight: _Flight, record: RequestRecord | None, answer: Answer | None) -> Done | None:
        """None where it is run again, since its answer expired before it could be told."""
        if record is not None and (flight.order.reply is None or not flight.is_of(record)):
            return Done(flight.taken)
        if record is None or answer is None:
            log.warning("kafka_answer_expired", job_id=flight.id)
            self._read.append(flight)
            self._came.set()
            return None
        order, short = flight.order, partial(_too_long, flight.order, record)
        job = Job.ended(record, answer, self._model.fingerprint or None)
        return Done(flight.taken, result_record(order, job), short)


def _too_long(order: Order, record: RequestRecord) -> Outgoing:
    """The result without the answer."""
    job = Job.of(record)
    job.error = ErrorInfo.of(TOO_LONG)
    return result_record(order, job)
