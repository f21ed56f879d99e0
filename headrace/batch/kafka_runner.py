"""Runs one line over Kafka: a request into its model's topic, its result out of the topic of results.

The id of a request's event is made of the run and the line, so one sent again is the same request. A resumed run
reads the results from where they were when the run began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
from kafka.errors import KafkaError, MessageSizeTooLargeError

from headrace.batch.input_file import CHAT, Line
from headrace.batch.kafka_reader import TopicReader
from headrace.batch.kafka_records import completion_of, header, record_of, refusal_of
from headrace.batch.output_record import Record, of_completion, of_job, of_refusal
from shared.errors import HeadraceError, PayloadTooLarge
from shared.kafka import topics
from shared.kafka.connection import producer, unavailable
from shared.kafka.message import Outgoing, read_result
from shared.kafka.message import Record as KafkaRecord
from shared.schemas.native.jobs import Job
from shared.settings import Settings

WATCHED = (topics.RESULTS, topics.DEAD_LETTERS)
POLL = 0.2  # seconds

Answer = Job | HeadraceError


def beginning(settings: Settings) -> dict[str, int]:
    """Where the reading of a run's results begins. Raises ConfigError, Unavailable."""
    with TopicReader(settings, WATCHED, {}) as reader:
        return reader.ends()


class OverKafka:
    """A Way.

    Args:
        run: the run's id.
        begin: what `beginning` said when it began.
        missing: whether a line still wants its result.
    """

    def __init__(
        self, settings: Settings, run: str, begin: Mapping[str, int], missing: Callable[[int], bool]
    ) -> None:
        self._settings = settings
        self._run = run
        self._begin = begin
        self._missing = missing
        self._answers: dict[int, asyncio.Future[Answer]] = {}

    async def __aenter__(self) -> Self:
        self._reader = await asyncio.to_thread(TopicReader, self._settings, WATCHED, self._begin)
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
        await asyncio.to_thread(self._producer.close, timeout=2)
        await asyncio.to_thread(self._reader.close)

    async def result(self, line: Line) -> Record:
        """Waits for as long as no worker answers. Raises Unavailable where the brokers fail."""
        answer = self._answer(line.number)
        try:
            if not answer.done():
                await self._send(record_of(line, f"{self._run}-{line.number}", f"{self._run}-{line.number}"))
                either: set[asyncio.Future[Any]] = {answer, self._reading}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self._reading.result()
            return self._record(line, answer.result())
        except PayloadTooLarge as error:
            return of_refusal(self._run, line, error)
        except HeadraceError as error:
            if error.retryable:
                raise
            return of_refusal(self._run, line, error)
        finally:
            del self._answers[line.number]

    def _record(self, line: Line, answer: Answer) -> Record:
        if isinstance(answer, HeadraceError):
            return of_refusal(self._run, line, answer)
        if line.url != CHAT:
            return of_job(self._run, line, msgspec.to_builtins(answer))
        if answer.error is not None:
            return of_refusal(self._run, line, answer.error.to_error())
        return of_completion(self._run, line, completion_of(answer))

    def _answer(self, number: int) -> asyncio.Future[Answer]:
        if number not in self._answers:
            self._answers[number] = asyncio.get_running_loop().create_future()
        return self._answers[number]

    async def _send(self, record: Outgoing) -> None:
        """Until the brokers have it."""
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
        except MessageSizeTooLargeError:
            raise PayloadTooLarge("the request is too long for Kafka's topic") from None
        except KafkaError as error:
            raise unavailable(error) from error

    async def _read(self) -> None:
        while True:
            for record in await asyncio.to_thread(self._reader.poll, POLL):
                self._take(record)

    def _take(self, record: KafkaRecord) -> None:
        letter = record.topic == topics.DEAD_LETTERS
        run, _, number = (header(record, "ce_id" if letter else "ce_subject") or "").rpartition("-")
        if run != self._run or not number.isdecimal() or not self._missing(int(number)):
            return
        try:
            found: Answer = refusal_of(record) if letter else read_result(record)
        except HeadraceError as error:
            found = error
        answer = self._answer(int(number))
        if not answer.done():
            answer.set_result(found)
