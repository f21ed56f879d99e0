"""Run the lines of a batch over Kafka: requests go into their model's topic, results come from the result topic.

The event id of a request is made of the run's id and the line's number, so that a line sent again is the same
request. A resumed run reads the results from the offsets at which the run began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
from kafka.errors import KafkaError

from headrace.batch.input_file import CHAT_URL, Line
from headrace.batch.kafka_reader import TopicReader
from headrace.batch.kafka_records import (
    error_from_dead_letter,
    readable_header,
    to_chat_completion,
    to_kafka_record,
)
from headrace.batch.output_record import Record
from shared.errors import HeadraceError, PayloadTooLarge
from shared.kafka import topics
from shared.kafka.connection import SIZE_ERRORS, close_producer, producer, unavailable
from shared.kafka.message import Outgoing, read_result
from shared.kafka.message import Record as KafkaRecord
from shared.numbers import whole
from shared.schemas.native.jobs import Job
from shared.settings import Settings

WATCHED_TOPICS = (topics.RESULTS, topics.DEAD_LETTERS)
POLL_S = 0.2

Answer = Job | HeadraceError


def current_end_offsets(settings: Settings) -> dict[str, int]:
    """Return the offsets from which a run that begins now reads its results. Raises ConfigError, Unavailable."""
    with TopicReader(settings, WATCHED_TOPICS, {}) as reader:
        return reader.end_offsets()


class KafkaLineRunner:
    """LineRunner over Kafka.

    Args:
        run: id of the run.
        begin: the result of `current_end_offsets` when the run began.
        is_missing: returns whether a line has no record yet.
    """

    def __init__(
        self, settings: Settings, run: str, begin: Mapping[str, int], is_missing: Callable[[int], bool]
    ) -> None:
        self._settings = settings
        self._run = run
        self._begin = begin
        self._is_missing = is_missing
        self._answers: dict[int, asyncio.Future[Answer]] = {}

    async def __aenter__(self) -> Self:
        self._reader = await asyncio.to_thread(TopicReader, self._settings, WATCHED_TOPICS, self._begin)
        try:
            self._producer = await asyncio.to_thread(producer, self._settings, linger_ms=5)
        except KafkaError as error:
            self._reader.close()
            raise unavailable(error) from error
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await asyncio.to_thread(close_producer, self._producer, 2.0)
        await asyncio.to_thread(self._reader.close)

    async def result(self, line: Line) -> Record:
        """Return the record of a line, however long it takes. Raises Unavailable if the brokers fail."""
        answer = self._answer(line.number)
        try:
            if not answer.done():
                await self._send(to_kafka_record(line, f"{self._run}-{line.number}", f"{self._run}-{line.number}"))
                either: set[asyncio.Future[Any]] = {answer, self._reading}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self._reading.result()
            return self._record(line, answer.result())
        except PayloadTooLarge as error:
            return Record.from_refusal(self._run, line, error)
        except HeadraceError as error:
            if error.retryable:
                raise
            return Record.from_refusal(self._run, line, error)
        finally:
            del self._answers[line.number]

    def _record(self, line: Line, answer: Answer) -> Record:
        if isinstance(answer, HeadraceError):
            return Record.from_refusal(self._run, line, answer)
        if line.url != CHAT_URL:
            return Record.from_job(self._run, line, msgspec.to_builtins(answer))
        if answer.error is not None:
            return Record.from_refusal(self._run, line, answer.error.to_error())
        return Record.from_completion(self._run, line, to_chat_completion(answer))

    def _answer(self, number: int) -> asyncio.Future[Answer]:
        if number not in self._answers:
            self._answers[number] = asyncio.get_running_loop().create_future()
        return self._answers[number]

    async def _send(self, record: Outgoing) -> None:
        """Send a record and wait until the brokers have acknowledged it."""
        loop = asyncio.get_running_loop()
        acknowledged = loop.create_future()

        def settle(outcome: Any) -> None:
            if not acknowledged.done():
                acknowledged.set_result(outcome)

        try:
            delivery = await asyncio.to_thread(self._producer.send, **record.arguments())
            delivery.add_both(lambda outcome: loop.call_soon_threadsafe(settle, outcome))
            outcome = await acknowledged
            if isinstance(outcome, Exception):
                raise outcome
        except SIZE_ERRORS:
            raise PayloadTooLarge("the request exceeds the topic's maximum message size") from None
        except KafkaError as error:
            raise unavailable(error) from error

    async def _read(self) -> None:
        while True:
            for record in await asyncio.to_thread(self._reader.poll, POLL_S):
                self._take(record)

    def _take(self, record: KafkaRecord) -> None:
        is_dead_letter = record.topic == topics.DEAD_LETTERS
        event_id = readable_header(record, "ce_id" if is_dead_letter else "ce_subject") or ""
        run, _, number = event_id.rpartition("-")
        if run != self._run or (line := whole(number)) is None or not self._is_missing(line):
            return
        try:
            found: Answer = error_from_dead_letter(record) if is_dead_letter else read_result(record)
        except HeadraceError as error:
            found = error
        answer = self._answer(line)
        if not answer.done():
            answer.set_result(found)
