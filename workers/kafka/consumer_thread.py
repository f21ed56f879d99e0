"""Kafka consumer thread: takes records while there is room, and writes finished ones. It never waits for a request.

Records go to `on_records`, their results come back through `finish`. After any failure it starts again from the
committed offsets, whose metadata lists the finished records above them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog
from kafka import ConsumerGroupMetadata, ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from shared.errors import InvalidRequest
from shared.kafka import topics
from shared.kafka.client_internals import finish_joining, release_used_up_records
from shared.kafka.connection import SIZE_ERRORS, connection, consumer, explained
from shared.kafka.message import Outgoing, Record, dead_letter
from shared.kafka.offsets import Offsets
from shared.settings import Settings
from workers.kafka.metrics import KafkaMetrics
from workers.kafka.transactional_writer import RECORD_ERRORS, TransactionalWriter

IDLE_POLL_S, BUSY_POLL_S = 0.2, 0.01  # the longest wait of one poll
RETRY_PAUSE_S = 0.5  # between attempts while the brokers fail
OFFSETS_TIMEOUT_MS = 5_000
SESSION_TIMEOUT_MS, HEARTBEAT_INTERVAL_MS = 10_000, 1_000
FETCH_MAX_WAIT_MS = 50  # a broker that waits for new records delays the fetch of its other partitions this long

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class TakenRecord:
    """A record, and the offsets of its partition at the time; a later owner of the partition has other ones."""

    record: Record
    offsets: Offsets


@dataclass(frozen=True)
class FinishedRecord:
    """The outcome of a record.

    Attributes:
        out: the record to write, if any.
        truncated: makes a shorter record, for a topic that refuses `out` as too long.
        code: error code of a dead letter, for the metrics.
    """

    taken: TakenRecord
    out: Outgoing | None = None
    truncated: Callable[[], Outgoing] | None = None
    code: str = ""


class ConsumerThread(threading.Thread):
    """Owns the consumer and the transactional producer.

    Args:
        model: name of the model whose topics are read.
        on_records: called in this thread with new records.
        on_failure: called in this thread with an unexpected error, which ends it.

    Raises:
        ConfigError: the settings of the connection are invalid.
    """

    def __init__(
        self,
        settings: Settings,
        model: str,
        on_records: Callable[[Sequence[TakenRecord]], None],
        on_failure: Callable[[Exception], None],
        metrics: KafkaMetrics,
    ) -> None:
        super().__init__(name="kafka", daemon=True)
        connection(settings)
        self._settings = settings
        self._model = model
        self._on_records = on_records
        self._on_failure = on_failure
        self._metrics = metrics
        self._writer = TransactionalWriter(settings)
        self._assigned: set[TopicPartition] = set()  # to this member of the group
        self._offsets: dict[TopicPartition, Offsets] = {}  # of assigned partitions, once they were read
        self._finished: list[FinishedRecord] = []
        self._transaction_lock = threading.Lock()  # partitions are revoked between transactions, not during one
        self._finished_lock = threading.Lock()
        self._lanes_full, self._set_aside = False, 0
        self._draining = threading.Event()
        self._stopping = threading.Event()
        self._report_at = 0.0

    # called in other threads

    def finish(self, done: Sequence[FinishedRecord]) -> None:
        """Queue results to be written and their records to be committed."""
        with self._finished_lock:
            self._finished.extend(done)

    def set_lanes_full(self, full: bool, *, set_aside: int = 0) -> None:
        """Pause or resume the topic of requests; it is paused while the lanes of the queue are full.

        Args:
            set_aside: records of the topic that wait for room of their tenants. They do not count in the window, so
                that those of other tenants pass them, as far as the metadata of their partition allows.
        """
        self._lanes_full, self._set_aside = full, set_aside

    def drain(self) -> None:
        """Stop taking records."""
        self._draining.set()

    def stop(self) -> None:
        """Write the finished records, leave the group and wait for the thread."""
        self._stopping.set()
        self.join()

    # called in this thread

    def run(self) -> None:
        try:
            self._consume()
        except Exception as error:  # noqa: BLE001  the worker must not continue without this thread
            self._on_failure(error)

    def _consume(self) -> None:
        while not self._stopping.is_set():
            kafka: KafkaConsumer | None = None
            try:
                kafka = self._open()
                while not self._stopping.is_set():
                    self._poll_once(kafka)
                self._write_finished(kafka)
            except (KafkaError, OSError) as error:
                self._metrics.errors.inc()
                log.warning("kafka_failed", error=explained(error))
                self._stopping.wait(RETRY_PAUSE_S)
            finally:
                self._on_revoked(list(self._assigned))
                if kafka is not None:
                    kafka.close(autocommit=False, timeout_ms=2_000)
        self._writer.close()

    def _open(self) -> KafkaConsumer:
        self._writer.open()  # completes or aborts the last transaction before offsets are read
        kafka = consumer(
            self._settings,
            group_id=topics.group(self._model),
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_INTERVAL_MS,
            max_poll_records=self._settings.kafka_window,
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
        )
        names = [topics.requests(self._model), topics.api_requests(self._model)]
        kafka.subscribe(names, listener=_RebalanceListener(self._on_assigned, self._on_revoked))
        return kafka

    def _poll_once(self, kafka: KafkaConsumer) -> None:
        room = self._pause_and_resume(kafka)
        release_used_up_records(kafka)
        finish_joining(kafka)
        busy = bool(self._finished) or any(offsets.unfinished for offsets in list(self._offsets.values()))
        batches = kafka.poll(timeout_ms=int((BUSY_POLL_S if busy else IDLE_POLL_S) * 1000), max_records=room)
        new_partitions = self._read_offsets(kafka)
        new = []
        for partition, records in batches.items():
            offsets = self._offsets.get(partition)
            if offsets is not None and partition not in new_partitions:
                new += [
                    TakenRecord(Record.from_consumed(each), offsets)
                    for each in records
                    if offsets.take(each.offset)
                ]
        if new:
            self._on_records(new)
        self._write_finished(kafka)
        self._report_metrics(kafka)

    def _pause_and_resume(self, kafka: KafkaConsumer) -> int:
        """Pause partitions without room, resume the others, and return how many records one poll may return.

        The API's topic has a separate window.
        """
        offsets = dict(self._offsets)
        room = dict.fromkeys((False, True), self._settings.kafka_window)
        for partition, each in offsets.items():
            room[self._is_api_topic(partition)] -= each.unfinished
        room[False] = min(room[False] + self._set_aside, self._settings.kafka_window)
        paused, allowed = kafka.paused(), []
        for partition in kafka.assignment():
            own_room = offsets[partition].room if partition in offsets else self._settings.kafka_window
            left = min(room[self._is_api_topic(partition)], own_room)
            closed = self._draining.is_set() or (self._lanes_full and not self._is_api_topic(partition))
            if left <= 0 or closed:
                if partition not in paused:
                    kafka.pause(partition)
                continue
            allowed.append(left)
            if partition in paused:
                kafka.resume(partition)
        return min(allowed, default=1)

    def _is_api_topic(self, partition: TopicPartition) -> bool:
        return bool(partition.topic == topics.api_requests(self._model))

    def _read_offsets(self, kafka: KafkaConsumer) -> set[TopicPartition]:
        """Read the committed offsets of new partitions, seek there, and return these partitions.

        Records of them that were already polled must be ignored. Without the seek, a partition that returns to this
        consumer would continue at its old position, past records whose results were dropped.
        """
        new_partitions = self._assigned - self._offsets.keys()
        for partition in new_partitions:
            committed = kafka.committed(partition, metadata=True, timeout_ms=OFFSETS_TIMEOUT_MS)
            if committed is None or committed.offset < 0:
                offsets = Offsets(kafka.beginning_offsets([partition], timeout_ms=OFFSETS_TIMEOUT_MS)[partition])
            else:
                offsets = Offsets.parse(committed.offset, committed.metadata or "")
            kafka.seek(partition, offsets.watermark)
            self._offsets[partition] = offsets
            log.info(
                "kafka_partition", topic=partition.topic, partition=partition.partition, watermark=offsets.watermark
            )
        return new_partitions

    def _on_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Take over partitions from their committed offsets, also those that this consumer owned before."""
        self._on_revoked(assigned)
        self._assigned.update(assigned)

    def _on_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Give up partitions; their next owner writes the results of their records."""
        with self._transaction_lock:
            self._assigned.difference_update(revoked)
            for partition in revoked:
                self._offsets.pop(partition, None)
            self._metrics.clear()

    def _write_finished(self, kafka: KafkaConsumer) -> None:
        with self._finished_lock:
            ready, self._finished = self._finished, []
        group = kafka.group_metadata()  # read before the partitions: with an outdated generation nothing is written
        with self._transaction_lock:
            own = set(map(id, self._offsets.values()))
            ready = [done for done in ready if id(done.taken.offsets) in own]
            if ready:
                self._commit_split(ready, group)

    def _commit_split(self, ready: Sequence[FinishedRecord], group: ConsumerGroupMetadata) -> None:
        """Commit all records. If one cannot be written, find it by bisection, and write another in its place."""
        try:
            self._commit(ready, group)
        except RECORD_ERRORS as error:
            if len(ready) > 1:
                half = len(ready) // 2
                self._commit_split(ready[:half], group)
                self._commit_split(ready[half:], group)
            elif (other := _in_place_of(ready[0], error)) is not None:
                self._commit_split([other], group)
            else:
                raise

    def _commit(self, ready: Sequence[FinishedRecord], group: ConsumerGroupMetadata) -> None:
        """Write results and the offsets of their records in one transaction."""
        finished: dict[int, list[int]] = {}
        for done in ready:
            finished.setdefault(id(done.taken.offsets), []).append(done.taken.record.offset)
        commits = {
            partition: offsets.once(finished[id(offsets)])
            for partition, offsets in self._offsets.items()
            if id(offsets) in finished
        }
        self._writer.write([done.out for done in ready if done.out is not None], commits, group)
        for done in ready:
            done.taken.offsets.finish(done.taken.record.offset)
            if done.code:
                self._metrics.dead_letters.labels(done.code).inc()
            elif done.out is not None:
                self._metrics.results.inc()

    def _report_metrics(self, kafka: KafkaConsumer) -> None:
        now = time.monotonic()
        if now < self._report_at:
            return
        self._report_at = now + 1.0
        self._metrics.in_flight.set(sum(offsets.unfinished for offsets in list(self._offsets.values())))
        for partition, offsets in list(self._offsets.items()):
            self._metrics.set_position(
                partition.topic, partition.partition, offsets.watermark, kafka.highwater(partition)
            )


def _in_place_of(done: FinishedRecord, error: KafkaError) -> FinishedRecord | None:
    """Return what to write in place of a record that its topic refuses: a shorter one, or a dead letter.

    None if the topic of results or of dead letters itself is missing or refuses everything.
    """
    if isinstance(error, SIZE_ERRORS) and done.truncated is not None:
        return replace(done, out=done.truncated(), truncated=None)
    if done.out is None or done.out.topic in (topics.RESULTS, topics.DEAD_LETTERS):
        return None
    refusal = InvalidRequest(f"the topic in reply-topic refuses the result: {error}", param="reply-topic")
    letter, record = partial(dead_letter, done.taken.record, refusal), done.taken.record
    log.warning("kafka_dead_letter", source=record.source, code=refusal.code)
    return FinishedRecord(done.taken, letter(), partial(letter, whole=False), refusal.code)


class _RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes on rebalances: until one has ended, the consumer's `assignment` still contains revoked partitions."""

    def __init__(
        self, on_assigned: Callable[[set[TopicPartition]], None], on_revoked: Callable[[set[TopicPartition]], None]
    ) -> None:
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self._on_revoked(revoked)

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._on_assigned(assigned)
