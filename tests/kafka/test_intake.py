"""Requests from a topic through a worker on the scripted engine to the results."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import KafkaProducer

from producer_api.background.sweeper import Sweeper
from shared.adapters.adapter import Adapter
from shared.backend import Backend
from shared.errors import ConfigError
from shared.kafka import topics
from shared.kafka.connection import connection
from shared.kafka.message import Outgoing
from shared.models.worker_registry import ModelInfo
from shared.protocol import RequestState
from shared.redis import keys
from shared.settings import Settings
from tests.support.kafka_bench import Bench, answer
from tests.support.waiting import LIMIT_S
from workers.kafka.consumer_thread import ConsumerThread
from workers.kafka.intake import MAX_BATCH, KafkaIntake
from workers.kafka.metrics import KafkaMetrics


@pytest.mark.slow
async def test_requests_get_results_and_others_dead_letters(bench: Bench, backend: Backend) -> None:
    """Given requests, a duplicate, plain JSON and invalid records, each has one result or one dead letter."""
    bench.settings = bench.settings.model_copy(update={"max_body_bytes": 100_000})  # brokers take 1 MB by default
    good = [bench.ask(f"p{i}", event_id=f"e{i}") for i in range(5)]
    topic = topics.requests(bench.model)
    plain = b'{"model": "%s", "prompt": "plain", "max_tokens": 3}' % bench.model.encode()
    reply = (("reply-topic", bench.results.encode()),)
    bad = [
        Outgoing(topic, b"k", b"{", (("x", b"\xff"),)),
        Outgoing(topic, b"k", plain.replace(bench.model.encode(), b"unknown")),
        Outgoing(topic, b"k", b" " * (bench.settings.max_body_bytes + 1)),
    ]
    await bench.asend(*good, good[2], Outgoing(topic, b"p", plain, reply), *bad)
    async with bench.worker():
        results = await bench.results_by_event(6)
        letters = await bench.letters(3)
        await bench.shows("watermark", lambda marks: sum(marks) == 10)
        assert (sum(bench.measured("lag")), bench.measured("in_flight")) == (0, [0])
        assert (bench.measured("results_total"), bench.measured("dead_letters_total")) == ([6], [1, 1, 1])
    assert bench.measured("watermark") == []  # it owns no partition any longer
    assert sum(map(len, results.values())) == 6
    assert await backend.redis.hlen(keys.LEDGER[0]) == 6  # their usage will be recorded
    for i in range(5):
        [job] = results[f"e{i}"]
        assert (job["state"], job["choices"][0]["text"]) == ("completed", answer(f"p{i}"))
        assert job["system_fingerprint"] == "fp_scripted"
        marks = await backend.token_log.marks(job["id"])
        assert marks is not None and marks.stay is not None and marks.runs[0].mark is not None
        assert job["created_at"] <= marks.stay.entered <= marks.runs[0].acquired_at
    [other] = [jobs for subject, jobs in results.items() if not subject.startswith("e")]
    assert other[0]["priority"] == "batch"
    found = {(letter.header("headrace-error-code"), letter.value) for letter in letters}
    assert found == {
        ("malformed_body", bad[0].value),
        ("model_not_found", bad[1].value),
        ("payload_too_large", bad[2].value),
    }
    assert ("x", b"\xff") in next(letter for letter in letters if letter.value == b"{").headers


@pytest.mark.slow
async def test_compressed_batches_are_read(bench: Bench) -> None:
    codecs = ("gzip", "lz4", "snappy", "zstd")
    for codec in codecs:
        options = {**connection(bench.settings), "api_version": (2, 1)}  # the mock's is older than zstd
        with closing(KafkaProducer(**options, compression_type=codec)) as writer:
            writer.send(**bench.ask("p" * 500, event_id=codec).arguments()).get(LIMIT_S)
    async with bench.worker():
        assert (await bench.results_by_event(len(codecs))).keys() == set(codecs)


@pytest.mark.slow
async def test_a_record_may_name_an_adapter_that_was_just_registered(bench: Bench, backend: Backend) -> None:
    """Given an intake that has looked at the adapters a moment ago: the record goes to its worker."""
    bench.settings = bench.settings.model_copy(update={"lora_dir": bench.settings.data_dir})
    async with bench.worker():
        await bench.asend(bench.ask("p", event_id="first"))
        await bench.results_by_event(1)
        adapter = Adapter(name="sql", base=bench.model, path="p", digest="d", rank=1, created=1)
        await backend.adapters.register(adapter, replace=False)
        named = b'{"model": "sql", "prompt": "x", "max_tokens": 3}'
        reply = (("reply-topic", bench.results.encode()),)
        await bench.asend(Outgoing(topics.requests(bench.model), b"k", named, reply))
        jobs = [job for jobs in (await bench.results_by_event(2)).values() for job in jobs]
    assert "compute no adapters" in next(job["error"]["message"] for job in jobs if job["error"])


@pytest.mark.slow
async def test_a_long_request_does_not_delay_its_partition(bench: Bench, backend: Backend) -> None:
    """Given a long request before others of its partition, they have results; a second owner completes it."""
    records = [bench.ask("[pace 60000] for ever", event_id="long")]
    records += [bench.ask(f"p{i}", event_id=f"e{i}") for i in range(6)]
    await bench.asend(*(replace(record, key=b"one") for record in records))
    async with bench.worker():
        results = await bench.results_by_event(6)
        assert sorted(results) == [f"e{i}" for i in range(6)]
    [held] = [record async for found in backend.token_log.unfinished() for record in found]
    await backend.token_log.close(held.id)
    async with bench.intake("b"):
        results = await bench.results_by_event(7)
    assert {subject: len(jobs) for subject, jobs in results.items()} == {
        "long": 1,
        **{f"e{i}": 1 for i in range(6)},
    }
    assert results["long"][0]["state"] == "cancelled"


@pytest.mark.slow
async def test_the_intake_respects_its_window(bench: Bench, backend: Backend) -> None:
    """Given a window of 4 and more requests, 4 are in the lanes, and the others follow as those end."""
    bench.settings = bench.settings.model_copy(update={"kafka_window": 4})
    await bench.asend(*(bench.ask(f"p{i}", event_id=f"e{i}") for i in range(12)))
    most = 0
    async with bench.intake():
        await waiting(backend, bench.model, 4)
        for _ in range(20):  # polls, each of which could take more
            await asyncio.sleep(0.02)
            most = max(most, (await backend.transport.depth(bench.model)).waiting)
    assert most == 4
    async with bench.worker():
        results = await bench.results_by_event(12)
    assert [len(results[f"e{i}"]) for i in range(12)] == [1] * 12


@pytest.mark.slow
async def test_the_intake_waits_for_a_full_lane(bench: Bench, settings: Settings, backend: Backend) -> None:
    """Given lanes with room for 2, all of 5 have one result, and none is refused."""
    narrow = Backend.open(settings.model_copy(update={"queue_depth": 2, "tenant_queue_depth": 2}))
    bench.backend = narrow
    await bench.asend(*(bench.ask(f"p{i}", event_id=f"e{i}") for i in range(5)))
    async with bench.worker():
        results = await bench.results_by_event(5)
    assert [len(results[f"e{i}"]) for i in range(5)] == [1] * 5
    await narrow.close()


@pytest.mark.slow
async def test_the_intake_waits_for_a_closed_queue(bench: Bench, backend: Backend) -> None:
    """Records wait in the intake while the queue drains, in the lanes during a pause, and have one result."""
    await backend.queues.set_gate(bench.model, "draining")
    await bench.asend(*(bench.ask(f"p{i}", event_id=f"e{i}") for i in range(5)))
    async with bench.worker():
        await bench.shows("in_flight", lambda found: found == [5])
        assert (await backend.transport.depth(bench.model)).waiting == 0
        await backend.queues.set_gate(bench.model, "paused")
        await waiting(backend, bench.model, 5)
        await backend.queues.set_gate(bench.model, "open")
        results = await bench.results_by_event(5)
    assert [len(results[f"e{i}"]) for i in range(5)] == [1] * 5


@pytest.mark.slow
async def test_a_closed_tenant_holds_up_no_other(bench: Bench, backend: Backend) -> None:
    """Given more records of a draining tenant than a batch and the window have, those behind them have results."""
    bench.settings = bench.settings.model_copy(update={"kafka_window": 8})
    await backend.queues.set_gate(bench.model, "draining", "closed")
    closed = [bench.ask("x", event_id=f"c{i}", tenant="closed") for i in range(MAX_BATCH + 2)]
    others = [bench.ask("x", event_id=f"o{i}", tenant="other") for i in range(10)]
    await bench.asend(*(replace(record, key=b"one") for record in [*closed, *others]))
    async with bench.worker():
        results = await bench.results_by_event(len(others))
        assert {name: len(jobs) for name, jobs in results.items()} == {f"o{i}": 1 for i in range(10)}
        await backend.queues.set_gate(bench.model, "open", "closed")
        results = await bench.results_by_event(len(others) + len(closed))
    assert {len(jobs) for jobs in results.values()} == {1}
    assert len(results) == len(others) + len(closed)


@pytest.mark.slow
async def test_records_wait_for_room_as_long_as_it_takes(
    bench: Bench, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweeper takes them for lost requests neither while they wait nor later; one passes its deadline."""
    monkeypatch.setattr("producer_api.background.sweeper.MIN_LOST_AGE_S", -1.0)
    monkeypatch.setattr("workers.kafka.intake.RECHECK_INTERVAL_S", 0.1)
    await backend.queues.set_gate(bench.model, "draining")
    late = bench.ask("late", event_id="late", timeout=60)
    await bench.asend(*(bench.ask(f"p{i}", event_id=f"e{i}") for i in range(4)), late)
    now = backend.token_log.now

    async def now_after_its_deadline() -> float:
        return await now() + 100

    async def no_models() -> list[str]:
        return []

    sweeper = Sweeper(backend, no_models)
    async with bench.worker():
        await bench.shows("in_flight", lambda found: found == [5])
        monkeypatch.setattr(backend.token_log, "now", now_after_its_deadline)
        assert (await bench.results_by_event(1))["late"][0]["error"]["code"] == "deadline_exceeded"
        for _ in range(4):  # each looks at all keys
            await sweeper.patrol()
        records = [record async for found in backend.token_log.unfinished() for record in found]
        assert [record.state for record in records] == [RequestState.QUEUED] * 4
        await backend.queues.set_gate(bench.model, "open")
        results = await bench.results_by_event(5)
    assert {name: [job["state"] for job in jobs] for name, jobs in results.items()} == {
        "late": ["failed"],
        **{f"e{i}": ["completed"] for i in range(4)},
    }


@pytest.mark.slow
async def test_a_record_whose_place_is_deleted_is_queued_again(
    bench: Bench, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.kafka.intake.RECHECK_INTERVAL_S", 0.1)
    await bench.asend(*(bench.ask(f"p{i}", event_id=f"e{i}") for i in range(3)))
    async with bench.intake():
        await waiting(backend, bench.model, 3)
        await backend.redis.delete(*keys.transport(bench.model))
        await waiting(backend, bench.model, 3)
    async with bench.worker():
        results = await bench.results_by_event(3)
    assert [[job["state"] for job in results[f"e{i}"]] for i in range(3)] == [["completed"]] * 3


async def waiting(backend: Backend, model: str, count: int) -> None:
    """Wait until so many requests are in the lanes."""
    async with asyncio.timeout(LIMIT_S):
        while (await backend.transport.depth(model)).waiting != count:
            await asyncio.sleep(0.02)


async def test_an_intake_ends_with_the_error_of_its_thread(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ConsumerThread) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(ConsumerThread, "_open", broken)
    model = ModelInfo(name=bench.model, max_model_len=8192, created=0)
    metrics = KafkaMetrics(bench.metrics.meter)
    intake = KafkaIntake(bench.settings, bench.backend, model, "a", metrics)
    with pytest.raises(ExceptionGroup) as ended:
        await asyncio.wait_for(intake.run(), LIMIT_S)
    assert ended.group_contains(ValueError)


async def test_a_worker_does_not_start_without_a_broker(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(
        update={"kafka_security_protocol": "SSL", "kafka_sasl_mechanism": None, "kafka_ssl_cafile": Path("/none")}
    )
    with pytest.raises(ConfigError, match="kafka_ssl_cafile"):
        async with bench.intake():
            pass
