"""Requests from a topic when consumers join, leave or are lost: others continue them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from kafka import KafkaConsumer

from shared.backend import Backend
from shared.kafka.connection import consumer
from shared.models.drain_orders import DrainOrders
from shared.protocol import Message, Tools
from shared.settings import Settings
from tests.support.kafka_bench import Bench, answer
from tests.support.kafka_mock import environment, headrace
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import GatedEngine
from workers.scripted_engine import ScriptedTokenizer

TOKENS = 40


class Counting(ScriptedTokenizer):
    """Tokenizer that renders a chat differently each time, as a template with the current time does."""

    rendered = 0

    def encode_chat(
        self, messages: Sequence[Message], tools: Tools | None = None, options: Any = None, **how: Any
    ) -> list[int]:
        Counting.rendered += 1
        return self.encode(f"{Counting.rendered}")


@pytest.mark.slow
async def test_a_takeover_keeps_the_first_rendered_prompt(bench: Bench, backend: Backend) -> None:
    """Given a worker lost during a chat from a topic, the answer is that of the first rendering."""
    chat = [{"role": "user", "content": "x"}]
    await bench.asend(bench.ask(None, event_id="chat", messages=chat, max_tokens=9))  # type: ignore[arg-type]
    engines = [GatedEngine(limit) for limit in (3, 1000)]
    for engine in engines:
        engine.tokenizer = Counting()
    async with bench.worker(engines[0]):
        await bench.shows("in_flight", lambda counts: counts == [1])
        [running] = [record async for found in backend.token_log.unfinished() for record in found]
        async for event in backend.token_log.follow(running.id, idle=5):
            if event and event.last_seq >= 2:
                break
    async with bench.worker(engines[1], "b"):
        results = await bench.results_by_event(1)
    assert results["chat"][0]["choices"][0]["text"] == answer("1", 9)


@pytest.mark.slow
async def test_rebalances_lose_and_repeat_nothing(bench: Bench) -> None:
    """Given a second consumer that joins and leaves, each of 60 requests has one result."""
    sent = asyncio.create_task(trickle(bench, 60))
    async with bench.worker():
        async with bench.intake("b"):
            await bench.shows("watermark", lambda marks: len(marks) == 2, "b")
        await sent
        results = await bench.results_by_event(60)
    assert {subject: len(jobs) for subject, jobs in results.items()} == {f"e{i}": 1 for i in range(60)}


@pytest.mark.slow
async def test_a_join_longer_than_a_poll_completes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a group leader that rejoins since there are new partitions, it owns them all again."""
    made: list[KafkaConsumer] = []

    def kept(*given: Any, **options: Any) -> KafkaConsumer:
        made.append(consumer(*given, **options))
        return made[-1]

    monkeypatch.setattr("workers.kafka.consumer_thread.consumer", kept)
    monkeypatch.setattr("workers.kafka.consumer_thread.IDLE_POLL_S", 0.0)
    async with bench.intake():
        await bench.shows("watermark", lambda marks: len(marks) == 4)
        made[0]._coordinator._assignment_snapshot = {}  # it assigned partitions before it knew any
        await bench.shows("watermark", lambda marks: not marks)
        await bench.shows("watermark", lambda marks: len(marks) == 4)


@pytest.mark.slow
async def test_partitions_have_one_owner_after_a_second_joins(bench: Bench) -> None:
    """Given a slow rebalance, the first member keeps no partition that it gave up."""
    async with bench.intake("a"):
        await bench.shows("watermark", lambda marks: len(marks) == 4)
        async with bench.intake("b"):
            await bench.shows("watermark", lambda marks: len(marks) == 2, "b")
            await bench.shows("watermark", lambda marks: len(marks) == 2, "a")


async def trickle(bench: Bench, count: int) -> None:
    for i in range(count):
        await bench.asend(bench.ask(f"[pace 200] p{i}", event_id=f"e{i}"))
        await asyncio.sleep(0.08)


@contextmanager
def process(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Worker process, killed at the end if it is still running."""
    names = ("model", "lease", "served_model_name")
    given = {name: getattr(settings, name) for name in names} | {"redis_url": settings.redis_url.get_secret_value()}
    own = {f"HEADRACE_{name.upper()}": str(value) for name, value in given.items()}
    own |= environment(settings.kafka_bootstrap)
    started = subprocess.Popen(headrace("worker"), env={**os.environ, **own}, stderr=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "ordered"])
async def test_a_worker_that_leaves_loses_no_result(
    bench: Bench, settings: Settings, backend: Backend, killed: bool
) -> None:
    """Given 30 running requests, if their worker is killed or must leave, another completes each once and whole."""
    prompts = [f"[pace 150] p{i}" for i in range(30)]
    with process(settings) as first:
        await bench.asend(*(bench.ask(p, event_id=p, max_tokens=TOKENS) for p in prompts))
        async with asyncio.timeout(LIMIT_S):
            while not await begun(backend, 30):
                await asyncio.sleep(0.05)
        if killed:
            first.kill()
        else:
            assert backend.server is not None
            workers = await backend.registry.workers()
            await DrainOrders(backend.server).place([worker.id for worker in workers], "now")
        assert first.wait(LIMIT_S) == (-signal.SIGKILL if killed else 0)
        assert await begun(backend, 30)  # the next worker completes them
        with process(settings):
            results = await bench.results_by_event(30)
    assert {subject: len(jobs) for subject, jobs in results.items()} == dict.fromkeys(prompts, 1)
    for prompt, [job] in results.items():
        assert job["choices"][0]["text"] == answer(prompt, TOKENS)


async def begun(backend: Backend, count: int) -> bool:
    """Return whether `count` requests have tokens, and none has ended."""
    job_ids = [each.id async for found in backend.token_log.unfinished() for each in found]
    records = await backend.token_log.records(job_ids)
    return len(records) == count and all(record and record.completion_tokens > 2 for record in records)
