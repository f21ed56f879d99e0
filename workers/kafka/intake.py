"""Kafka intake: queues the requests of a topic's records, and writes a result when a request ends.

It runs in the worker's event loop. Each step is idempotent by the job id, which follows from the record: a record
that is delivered again finds its request queued, running or ended.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import msgspec
import structlog

from shared.adapters.adapter import Adapter
from shared.adapters.store import KnownAdapters
from shared.backend import Backend
from shared.errors import HeadraceError, Unavailable
from shared.kafka.message import dead_letter, read_request, result_record
from shared.ledger.store import Behind, Ledger
from shared.ledger.types import Charge, Entry
from shared.models.worker_registry import ModelInfo
from shared.protocol import RequestState, Ticket, adapted_fingerprint
from shared.redis import keys
from shared.runtime.retry import run_forever
from shared.schemas.native.jobs import Job
from shared.settings import Settings
from shared.token_log.answer import Answer, read_whole
from shared.token_log.interface import OVERDUE, RequestRecord
from shared.tracing.conventions import take_record_span
from shared.validation.request_limits import Limits
from workers.engine.stage import Stage
from workers.kafka.consumer_thread import ConsumerThread, FinishedRecord, TakenRecord
from workers.kafka.in_flight import InFlight, api_job_id, result_without_answer, set_aside
from workers.kafka.metrics import KafkaMetrics
from workers.kafka.refusals import Refusals

RECHECK_INTERVAL_S = 5.0  # between checks of all requests in flight, for ends whose notification was lost
RETRY_PAUSE_S = 0.25
MAX_BATCH = 64  # requests published or answers read in one call

log = structlog.get_logger(__name__)


class KafkaIntake:
    """Serves one worker's model.

    Args:
        model: as the worker announces it.
        worker: id of the worker; it names the channel on which the ends of its requests are published.

    Raises:
        ConfigError: the settings of the connection are invalid.
    """

    def __init__(
        self, settings: Settings, backend: Backend, model: ModelInfo, worker: str, metrics: KafkaMetrics
    ) -> None:
        self._backend = backend
        self._model = model
        self._any_name = settings.any_model_name
        self._adapters = KnownAdapters(backend.adapters if settings.lora_dir is not None else None)
        self._limits = Limits.from_settings(settings)
        server = backend.limits if settings.usage else None
        self._ledger = None if server is None else Ledger.from_settings(settings, server)
        self._max_bytes = settings.max_body_bytes
        self._channel = keys.notify_channel(f"kafka:{worker}")
        self._loop = asyncio.get_running_loop()
        self._consumer = ConsumerThread(settings, model.name, self._on_records, self._on_failure, metrics)
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self._new: deque[TakenRecord] = deque()
        self._to_adopt: deque[InFlight] = deque()  # parsed, and not yet adopted
        self._to_publish: deque[InFlight] = deque()  # waiting for room in the lanes
        self._in_flight: dict[str, InFlight] = {}  # adopted requests that have not ended, by job id
        self._queued: list[str] = []  # job ids that had not begun at the last check
        self._ended: dict[str, None] = {}  # job ids in the order in which they ended
        self._finishing = asyncio.Lock()
        self._records_ready = asyncio.Event()
        self._ends_ready = asyncio.Event()

    def _on_records(self, taken: Sequence[TakenRecord]) -> None:
        """Called in the consumer thread."""
        self._loop.call_soon_threadsafe(self._add_records, taken)

    def _on_failure(self, error: Exception) -> None:
        """Called in the consumer thread."""
        self._loop.call_soon_threadsafe(self._failure.set_exception, error)

    def _add_records(self, taken: Sequence[TakenRecord]) -> None:
        self._new.extend(taken)
        self._records_ready.set()

    async def run(self) -> None:
        """Work until cancelled. Finished requests are then written; the next owner continues the others."""
        self._consumer.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                listen = run_forever(self._listen, pause_s=RETRY_PAUSE_S, failure_event="kafka_ends_unavailable")
                tasks.create_task(listen)
                tasks.create_task(self._run_on_event(self._records_ready, self._take_and_publish))
                tasks.create_task(self._run_on_event(self._ends_ready, self._finish_ended))
                await self._failure
        finally:
            await asyncio.shield(asyncio.to_thread(self._consumer.stop))

    def drain(self) -> None:
        """Stop taking records; results of those already taken are still written."""
        self._consumer.drain()

    async def _listen(self) -> None:
        """Mark requests whose ends are published; check all after a missed message, and at each interval."""
        async with self._backend.live.subscribe(self._channel) as ends:
            recheck_at = 0.0
            while True:
                message = await ends.get(max(0.01, recheck_at - time.monotonic()))
                if isinstance(message, bytes):
                    self._mark_ended(message.decode(errors="replace"))
                if not isinstance(message, bytes) or time.monotonic() >= recheck_at:
                    await self._check_all()
                    recheck_at = time.monotonic() + RECHECK_INTERVAL_S

    def _mark_ended(self, job_id: str) -> None:
        if job_id in self._in_flight:
            self._ended[job_id] = None
            self._ends_ready.set()

    async def _check_all(self) -> None:
        """Mark the requests that have ended or are overdue, and have the places of those that wait looked at."""
        items, now = list(self._in_flight.values()), await self._backend.token_log.now()
        for item, record in zip(items, await self._adopt(items, create=False), strict=True):
            if record is None or record.state.terminal:
                self._mark_ended(item.id)
            elif record.state is RequestState.QUEUED:
                self._queued.append(item.id)
                self._records_ready.set()
                if record.deadline is not None and record.deadline <= now:
                    await self._backend.token_log.close(item.id, OVERDUE)

    async def _adopt(self, items: Sequence[InFlight], *, create: bool) -> list[RequestRecord | None]:
        adoptions = [item.adoption(create=create) for item in items]
        return await self._backend.token_log.adopt(adoptions, self._channel) if adoptions else []

    async def _run_on_event(self, event: asyncio.Event, work: Callable[[], Awaitable[bool]]) -> None:
        """Run `work` whenever the event is set, and again after a pause if it returns True or Redis is away."""
        while True:
            await event.wait()
            event.clear()
            try:
                more = await work()
            except Unavailable as error:
                log.warning("kafka_intake_unavailable", error=error.message)
                more = True
            if more:
                event.set()
                await asyncio.sleep(RETRY_PAUSE_S)

    # from record to queue

    async def _take_and_publish(self) -> bool:
        """Adopt and publish new requests. Return True if some must wait for room."""
        await self._take_again()
        await self._adopt_new()
        return not await self._publish()

    async def _take_again(self) -> None:
        """Adopt again the requests whose place in the queue another program deleted before they began.

        The sweeper leaves them alone: it cannot know which of them wait here for room.
        """
        published = {job_id for job_id in self._queued if job_id in self._in_flight}
        published -= {item.id for item in self._to_publish}
        self._queued.clear()
        if published:
            missing = await self._backend.transport.missing(self._model.name, list(published))
            self._to_adopt.extend(self._in_flight[job_id] for job_id in missing if job_id in self._in_flight)

    async def _adopt_new(self) -> None:
        """Parse and adopt new records, and route each request by the state of its log."""
        if self._new:
            # read now: a record that names an adapter registered a moment ago would become a dead letter
            now, adapters = await self._backend.token_log.now(), await self._adapters.get(0.0)
            while self._new:
                await self._parse(self._new[0], now, adapters)
                self._new.popleft()
        items = list(self._to_adopt)
        records = await self._adopt(items, create=True)
        for item, record in zip(items, records, strict=True):
            self._to_adopt.popleft()
            self._route(item, record)

    async def _parse(self, taken: TakenRecord, now: float, adapters: Mapping[str, Adapter]) -> None:
        """Parse a record. An invalid one becomes a dead letter, and a request of the API ends with the error."""
        record = taken.record
        try:
            with Stage("reading of a record", source=record.source):
                order = read_request(
                    *(record, self._model, self._limits, self._max_bytes, now),
                    any_name=self._any_name,
                    adapters=adapters,
                )
        except HeadraceError as error:
            log.warning("kafka_dead_letter", source=record.source, code=error.code)
            if (job_id := api_job_id(record, self._model.name)) is not None:
                await self._backend.token_log.close(job_id, error)
            truncated = partial(dead_letter, record, error, whole=False)
            self._consumer.finish([FinishedRecord(taken, dead_letter(record, error), truncated, error.code)])
        else:
            self._to_adopt.append(InFlight(order, taken))

    def _route(self, item: InFlight, record: RequestRecord | None) -> None:
        if record is None or not item.is_of(record):
            self._consumer.finish([FinishedRecord(item.taken)])  # taken back by the API, or a duplicate
            return
        request = msgspec.structs.replace(
            item.order.request, created_at=record.created_at, deadline=record.deadline
        )
        item = replace(item, order=replace(item.order, request=request))
        if record.state is RequestState.QUEUED:
            item = self._traced(item)
        self._in_flight[item.id] = item
        if record.state.terminal:
            self._mark_ended(item.id)
        elif record.state is RequestState.QUEUED:
            self._to_publish.append(item)

    def _traced(self, item: InFlight) -> InFlight:
        """Start the span of moving a request into its lane, whose trace the request continues."""
        if self._backend.tracer is None:
            return item
        request, record = item.order.request, item.taken.record
        start = take_record_span(request, record.topic, record.partition, record.offset)
        span = self._backend.tracer.start(start, request.traceparent)
        request = msgspec.structs.replace(request, traceparent=span.traceparent)
        return replace(item, order=replace(item.order, request=request), span=span)

    async def _publish(self) -> bool:
        """Publish requests as far as the lanes have room. Return False if some must wait.

        What refuses one holds up only those whom it concerns: it may last as long as a queue drains.
        """
        refusals, waiting = Refusals(), list[InFlight]()
        try:
            while self._to_publish:
                first = list(itertools.islice(self._to_publish, MAX_BATCH))
                batch = [item for item in first if self._in_flight.get(item.id) is item]  # the others have ended
                tried = [item for item in batch if not refusals.concern(item.order)]
                places = await self._place(tried)
                for _ in first:
                    self._to_publish.popleft()
                for item, place in zip(tried, places, strict=True):
                    refusals.note(item.order, place)
                placed = {id(item) for item, place in zip(tried, places, strict=True) if isinstance(place, Ticket)}
                waiting += [item for item in batch if id(item) not in placed]
        finally:
            self._to_publish.extendleft(reversed(waiting))
        self._consumer.set_lanes_full(refusals.whole_model, set_aside=set_aside(waiting))
        return not waiting

    async def _place(self, items: Sequence[InFlight]) -> Sequence[Ticket | HeadraceError]:
        if not items:
            return ()
        await self._charge_usage(items)
        places = await self._backend.transport.publish_many([item.order.request for item in items])
        for item, place in zip(items, places, strict=True):
            if item.span is not None and isinstance(place, Ticket):
                item.span.end()
        return places

    async def _charge_usage(self, items: Sequence[InFlight]) -> None:
        """Charge requests to the usage ledger, except those that the API has charged. Raises Unavailable."""
        charges = [
            Charge(
                item.id,
                Entry(item.order.request.tenant, item.order.request.model, user=item.order.request.user),
                (),
            )
            for item in items
            if not item.order.by_api
        ]
        if self._ledger is None or not charges:
            return
        try:
            await self._ledger.charge(*charges)
        except Behind:
            raise Unavailable("usage records cannot be written now; try again later") from None

    # from end to result

    async def settle(self) -> None:
        """Write the results of all requests that have ended, if Redis can be reached."""
        try:
            await self._check_all()
            await self._finish_ended()
        except Unavailable as error:
            log.warning("kafka_intake_unavailable", error=error.message)

    async def _finish_ended(self) -> bool:
        async with self._finishing:
            while self._ended:
                ended = [self._in_flight[job_id] for job_id in itertools.islice(self._ended, MAX_BATCH)]
                records = await self._adopt(ended, create=False)
                wanted = [item.id for item in ended if item.order.reply is not None]
                answers = dict(zip(wanted, await read_whole(self._backend.token_log, wanted), strict=True))
                outcomes = [
                    self._result(item, record, answers.get(item.id))
                    for item, record in zip(ended, records, strict=True)
                ]
                for item in ended:
                    # a request that was taken again in the meantime is checked again
                    if self._in_flight[item.id] is item:
                        del self._in_flight[item.id], self._ended[item.id]
                self._consumer.finish([done for done in outcomes if done is not None])
        return False

    def _result(self, item: InFlight, record: RequestRecord | None, answer: Answer | None) -> FinishedRecord | None:
        """Return the finished record; None if the request must run again because its answer has expired."""
        if record is not None and (item.order.reply is None or not item.is_of(record)):
            return FinishedRecord(item.taken)
        if record is None or answer is None:
            log.warning("kafka_answer_expired", job_id=item.id)
            self._to_adopt.append(item)
            self._records_ready.set()
            return None
        order, truncated = item.order, partial(result_without_answer, item.order, record)
        job = Job.ended(record, answer, adapted_fingerprint(self._model.fingerprint or None, record.adapter))
        return FinishedRecord(item.taken, result_record(order, job), truncated)
