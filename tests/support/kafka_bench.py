"""Producer, readers and a worker for the Kafka topics of one model."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from kafka import KafkaConsumer, KafkaProducer
from prometheus_client import CollectorRegistry

from shared.backend import Backend
from shared.kafka import topics
from shared.kafka.connection import consumer, producer
from shared.kafka.message import KafkaRequest, Outgoing, Record, request_record
from shared.metrics.meter import Meter
from shared.models.worker_registry import ModelInfo, WorkerInfo
from shared.settings import Settings
from tests.support.waiting import LIMIT_S
from workers.engine.interface import Generator
from workers.kafka.intake import KafkaIntake
from workers.kafka.metrics import KafkaMetrics
from workers.metrics import WorkerMetrics
from workers.scripted_engine import ScriptedEngine, expected, text_of
from workers.worker import Worker


def _polled(reader: KafkaConsumer, seconds: float) -> list[Record]:
    return [Record.from_consumed(each) for records in reader.poll(int(seconds * 1000)).values() for each in records]


class Bench:
    """Topics of one model, with a result topic of their own."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        assert settings.served_model_name is not None
        self.settings = settings
        self.backend = backend
        self.model = settings.served_model_name
        self.results = f"results-{self.model}"
        self._producer: KafkaProducer | None = None
        self.metrics = WorkerMetrics()
        self._registries: dict[str, CollectorRegistry] = {}

    @property
    def producer(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = producer(self.settings)
        return self._producer

    def ask(self, prompt: str, *, event_id: str | None = None, **fields: object) -> Outgoing:
        body = KafkaRequest(model=self.model, prompt=prompt, **{"max_tokens": 3, **fields})
        return request_record(
            topics.requests(self.model),
            body,
            event_id=event_id or secrets.token_hex(6),
            source="/tests",
            key=secrets.token_bytes(4),
            reply_topic=self.results,
        )

    def send(self, records: Sequence[Outgoing]) -> None:
        for future in [self.producer.send(**record.arguments()) for record in records]:
            future.get(LIMIT_S)

    async def asend(self, *records: Outgoing) -> None:
        await asyncio.to_thread(self.send, records)

    def _read(self, topic: str, count: int, linger: float, ours: Callable[[Record], bool]) -> list[Record]:
        reader = consumer(self.settings, group_id=None, metadata_max_age_ms=500)
        try:
            reader.subscribe([topic])
            found: list[Record] = []
            deadline = time.monotonic() + LIMIT_S
            while len(found) < count and time.monotonic() < deadline:
                found += filter(ours, _polled(reader, 0.1))
            return [*found, *filter(ours, _polled(reader, linger))]
        finally:
            reader.close()

    async def read(self, topic: str, count: int, *, linger: float = 0.3) -> list[Record]:
        """Return the first `count` records of a topic, and any others that arrive within `linger` seconds after."""
        return await asyncio.to_thread(self._read, topic, count, linger, lambda record: True)

    async def letters(self, count: int) -> list[Record]:
        """Return dead letters of this model's requests, as `read` does."""

        def ours(record: Record) -> bool:
            return record.header("headrace-topic") == topics.requests(self.model)

        return await asyncio.to_thread(self._read, topics.DEAD_LETTERS, count, 0.3, ours)

    async def results_by_event(self, count: int) -> dict[str, list[dict]]:
        """Return results by the event id of their request."""
        found: dict[str, list[dict]] = {}
        for record in await self.read(self.results, count):
            found.setdefault(record.header("ce_subject") or record.source, []).append(json.loads(record.value))
        return found

    @asynccontextmanager
    async def worker(self, engine: Generator | None = None, name: str = "a") -> AsyncIterator[KafkaIntake]:
        engine = engine or ScriptedEngine()
        info = WorkerInfo(id=name, pid=1, model=self.model, state="ready", max_model_len=8192)
        worker = Worker(info, engine, self.backend, self.settings, self.metrics)
        async with self.intake(name) as intake:
            task = asyncio.create_task(worker.run())
            try:
                yield intake
            finally:
                worker.drain()
                await task

    def measured(self, metric: str, name: str = "a") -> list[float]:
        """Return an intake's values of a metric, one for each partition of the request topic, or for each label."""
        found = [sample for family in self._registries[name].collect() for sample in family.samples]
        of_topic = (topics.requests(self.model), None)
        return [
            sample.value
            for sample in found
            if sample.name == f"headrace_kafka_{metric}" and sample.labels.get("topic") in of_topic
        ]

    async def shows(self, metric: str, wanted: Callable[[list[float]], bool], name: str = "a") -> None:
        """Wait until the values of a metric satisfy `wanted`."""
        async with asyncio.timeout(LIMIT_S):
            while not wanted(self.measured(metric, name)):
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def intake(self, name: str = "a") -> AsyncIterator[KafkaIntake]:
        model = ModelInfo(name=self.model, max_model_len=8192, created=0, fingerprint="fp_scripted")
        registry = self._registries[name] = CollectorRegistry()
        intake = KafkaIntake(self.settings, self.backend, model, name, KafkaMetrics(Meter(registry)))
        running = asyncio.create_task(intake.run())
        try:
            yield intake
            await intake.settle()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def close(self) -> None:
        if self._producer is not None:
            self._producer.close(timeout=2)


def answer(prompt: str, tokens: int = 3) -> str:
    """Return the text with which the scripted engine answers."""
    return "".join(text_of(expected([ord(c) for c in prompt], 0, p)) for p in range(tokens))
