"""The thread that polls: takes records while there is room, and writes what is done. It never waits for a request.

It knows partitions, offsets and records, not what they ask: records go to `taken`, what becomes of them comes back
by `finish`. Whatever fails, it begins again from the committed offsets, whose metadata names what is done above.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import structlog
from kafka import ConsumerGroupMetadata, ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError

from shared.kafka import topics
from shared.kafka.client_internals import finish_joining, release_used_up_records
from shared.kafka.connection import connection, consumer, explained
from shared.kafka.message import Outgoing, Record
from shared.kafka.offsets import Offsets
from shared.settings import Settings
from workers.kafka.metrics import KafkaMetrics
from workers.kafka.transactional_writer import Results

IDLE_POLL, BUSY_POLL = 0.2, 0.01  # seconds that one poll may wait
PAUSE = 0.5  # seconds between attempts when brokers fail
WAIT = 5_000  # ms for an answer about offsets
SESSION, HEARTBEAT = 10_000, 1_000  # ms
FETCH = 50  # ms that brokers may wait for new records; another partition there is fetched after that

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Taken:
    """A record, and the ownership of its partition under which it was taken."""

    record: Record
    owned: Offsets


@dataclass(frozen=True)
class Done:
    """What became of a record; `truncated` makes what is written in place of `out` where no topic takes that."""

    taken: Taken
    out: Outgoing | None = None
    truncated: Callable[[], Outgoing] | None = None
    code: str = ""  # of a dead letter


class Shuttle(threading.Thread):
    """Owns the consumer and the transactional producer.

    Args:
        model: whose topics.
        taken: called in this thread with new records.
        broken: called in this thread with a bug, at its end.

    Raises ConfigError for settings that lead to no broker.
    """

    def __init__(
        self,
        settings: Settings,
        model: str,
        taken: Callable[[Sequence[Taken]], None],
        broken: Callable[[Exception], None],
        metrics: KafkaMetrics,
    ) -> None:
        super().__init__(name="kafka", daemon=True)
        connection(settings)
        self._settings = settings
        self._model = model
        self._taken = taken
        self._broken = broken
        self._metrics = metrics
        self._results = Results(settings)
        self._granted: set[TopicPartition] = set()  # by the group
        self._owned: dict[TopicPartition, Offsets] = {}  # those of them whose offsets are known
        self._done: list[Done] = []
        self._lock = threading.Lock()  # partitions are given up between transactions, not during one
        self._mailbox = threading.Lock()
        self._full = False
        self._draining = threading.Event()
        self._stopping = threading.Event()
        self._show_at = 0.0

    # called by others

    def finish(self, done: Sequence[Done]) -> None:
        """Have results written, and their records counted as done."""
        with self._mailbox:
            self._done.extend(done)

    def hold(self, full: bool) -> None:
        """Whether the lanes are full: then no more records are taken."""
        self._full = full

    def drain(self) -> None:
        """Take no more records."""
        self._draining.set()

    def stop(self) -> None:
        """Write what is done, and leave the group."""
        self._stopping.set()
        self.join()

    # the thread

    def run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001  whatever it is, the worker must not go on without this thread
            self._broken(error)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            polled: KafkaConsumer | None = None
            try:
                polled = self._open()
                while not self._stopping.is_set():
                    self._round(polled)
                self._write(polled)
            except (KafkaError, OSError) as error:
                self._metrics.failures.inc()
                log.warning("kafka_failed", error=explained(error))
                self._stopping.wait(PAUSE)
            finally:
                self._forget(list(self._granted))
                if polled is not None:
                    polled.close(autocommit=False, timeout_ms=2_000)
        self._results.close()

    def _open(self) -> KafkaConsumer:
        self._results.open()  # what an earlier transaction came to is settled before offsets are read
        polled = consumer(
            self._settings,
            group_id=topics.group(self._model),
            session_timeout_ms=SESSION,
            heartbeat_interval_ms=HEARTBEAT,
            max_poll_records=self._settings.kafka_window,
            fetch_max_wait_ms=FETCH,
        )
        names = [topics.requests(self._model), topics.api_requests(self._model)]
        polled.subscribe(names, listener=_Ownership(self._grant, self._forget))
        return polled

    def _round(self, polled: KafkaConsumer) -> None:
        room = self._steer(polled)
        release_used_up_records(polled)
        finish_joining(polled)
        busy = bool(self._done) or any(owned.unfinished for owned in list(self._owned.values()))
        found = polled.poll(timeout_ms=int((BUSY_POLL if busy else IDLE_POLL) * 1000), max_records=room)
        began = self._own(polled)
        new = []
        for place, records in found.items():
            owned = self._owned.get(place)
            if owned is not None and place not in began:
                new += [Taken(Record.of(each), owned) for each in records if owned.take(each.offset)]
        if new:
            self._taken(new)
        self._write(polled)
        self._show(polled)

    def _steer(self, polled: KafkaConsumer) -> int:
        """Pause what there is no room for; how many records may come. The API's topic has a window of its own."""
        owned = dict(self._owned)
        room = dict.fromkeys((False, True), self._settings.kafka_window)
        for place, each in owned.items():
            room[self._by_api(place)] -= each.unfinished
        paused, allowed = polled.paused(), []
        for place in polled.assignment():
            left = min(
                room[self._by_api(place)], owned[place].room if place in owned else self._settings.kafka_window
            )
            closed = self._draining.is_set() or (self._full and not self._by_api(place))
            if left <= 0 or closed:
                if place not in paused:
                    polled.pause(place)
                continue
            allowed.append(left)
            if place in paused:
                polled.resume(place)
        return min(allowed, default=1)

    def _by_api(self, place: TopicPartition) -> bool:
        return bool(place.topic == topics.api_requests(self._model))

    def _own(self, polled: KafkaConsumer) -> set[TopicPartition]:
        """Learn of new partitions what is done there, and begin after it; what was polled of them before is void.

        One that comes back to the same owner would go on where that was, past records that it forgot.
        """
        began = self._granted - self._owned.keys()
        for place in began:
            committed = polled.committed(place, metadata=True, timeout_ms=WAIT)
            if committed is None or committed.offset < 0:
                owned = Offsets(polled.beginning_offsets([place], timeout_ms=WAIT)[place])
            else:
                owned = Offsets.parse(committed.offset, committed.metadata or "")
            polled.seek(place, owned.watermark)
            self._owned[place] = owned
            log.info("kafka_partition", topic=place.topic, partition=place.partition, watermark=owned.watermark)
        return began

    def _grant(self, got: Collection[TopicPartition]) -> None:
        """They are ours, beginning with what is committed, also where they were ours before."""
        self._forget(got)
        self._granted.update(got)

    def _forget(self, lost: Collection[TopicPartition]) -> None:
        """They are another's; so what becomes of their records is the other's to write."""
        with self._lock:
            self._granted.difference_update(lost)
            for place in lost:
                self._owned.pop(place, None)
            self._metrics.clear()

    def _write(self, polled: KafkaConsumer) -> None:
        with self._mailbox:
            ready, self._done = self._done, []
        group = polled.group_metadata()  # before the partitions are looked at: a later generation writes nothing
        with self._lock:
            own = set(map(id, self._owned.values()))
            ready = [done for done in ready if id(done.taken.owned) in own]
            if ready:
                self._settle(ready, group)

    def _settle(self, ready: Sequence[Done], group: ConsumerGroupMetadata) -> None:
        """Write all; where one is too long for its topic, find it by halves: only that is shortened."""
        try:
            self._commit(ready, group)
        except MessageSizeTooLargeError:
            if len(ready) > 1:
                half = len(ready) // 2
                self._settle(ready[:half], group)
                self._settle(ready[half:], group)
            elif ready[0].truncated is not None:
                self._commit([replace(ready[0], out=ready[0].truncated())], group)
            else:
                raise

    def _commit(self, ready: Sequence[Done], group: ConsumerGroupMetadata) -> None:
        """Results, and that their records are done, as one."""
        finished: dict[int, list[int]] = {}
        for done in ready:
            finished.setdefault(id(done.taken.owned), []).append(done.taken.record.offset)
        offsets = {
            place: owned.once(finished[id(owned)]) for place, owned in self._owned.items() if id(owned) in finished
        }
        self._results.write([done.out for done in ready if done.out is not None], offsets, group)
        for done in ready:
            done.taken.owned.finish(done.taken.record.offset)
            if done.code:
                self._metrics.dead_letters.labels(done.code).inc()
            elif done.out is not None:
                self._metrics.results.inc()

    def _show(self, polled: KafkaConsumer) -> None:
        now = time.monotonic()
        if now < self._show_at:
            return
        self._show_at = now + 1.0
        self._metrics.in_flight.set(sum(owned.unfinished for owned in list(self._owned.values())))
        for place, owned in list(self._owned.items()):
            self._metrics.show(place.topic, place.partition, owned.watermark, polled.highwater(place))


class _Ownership(ConsumerRebalanceListener):  # type: ignore[misc]
    """Tells what was got and lost: until a rebalance has ended, the consumer's `assignment` has what was lost."""

    def __init__(
        self, grant: Callable[[set[TopicPartition]], None], forget: Callable[[set[TopicPartition]], None]
    ) -> None:
        self._grant = grant
        self._forget = forget

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self._forget(revoked)

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._grant(assigned)
