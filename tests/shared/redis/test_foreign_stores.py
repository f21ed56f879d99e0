"""Foreign data in the stores beside the queue hides no entry of Headrace's."""

from __future__ import annotations

import pytest

from shared.backend import Backend
from shared.batches.store import Batches
from shared.dead_letters.store import DeadLetter
from shared.errors import NotFound
from shared.files.records import FileRecord, FileRecords
from shared.ledger.store import Ledger
from shared.ledger.types import Charge, Entry
from shared.models.worker_registry import WorkerInfo
from shared.protocol import ErrorInfo
from shared.redis import keys
from shared.settings import Settings
from shared.webhooks.interface import Hook, Webhook
from tests.support.batch_records import batch_record
from tests.support.fakes import MODEL, make_request
from tests.support.foreign_counts import foreign


async def test_junk_in_the_registry_hides_no_worker(backend: Backend) -> None:
    await backend.redis.sadd(keys.WORKERS, b"\xff", "junk", "typed")
    await backend.redis.set(keys.worker("junk"), "{")
    await backend.redis.rpush(keys.worker("typed"), "x")
    await backend.redis.set(keys.MODELS, "a string")
    await backend.registry.beat(WorkerInfo(id="real", pid=1, model=MODEL, state="ready"))
    assert [worker.id for worker in await backend.registry.workers()] == ["real"]
    assert [model.name for model in await backend.registry.models()] == [MODEL]
    assert foreign(backend)["registry"] >= 3


async def test_junk_among_dead_letters_hides_none(backend: Backend) -> None:
    letters = [DeadLetter(make_request(), ErrorInfo("x", "y"), 3, 1000.0 + i) for i in range(3)]
    await backend.dead_letters.add(letters[0])
    for i, junk in enumerate((b"{", b"\xff", b'{"request": 5}')):
        await backend.redis.hset(keys.DEAD_LETTERS, f"junk{i}", junk)
        await backend.redis.zadd(keys.DEAD_INDEX, {f"junk{i}": 5e12, f"missing{i}": 5e12})
    await backend.dead_letters.add(letters[1])
    assert list(await backend.dead_letters.list(most=2)) == [letters[1], letters[0]]
    assert foreign(backend)["dead_letters"] == 6
    await backend.redis.set(keys.DEAD_LETTERS, "a string")
    await backend.dead_letters.add(letters[2])
    assert await backend.dead_letters.get(letters[2].id) == letters[2]


async def test_junk_among_webhooks_delays_none(backend: Backend) -> None:
    real = Webhook(id="req_real", hook=Hook("https://example.com"), created_at=1.0)
    for name, fields in {"a": {"w": "{"}, "b": {"w": "5", "epoch": "x"}, b"\xff": {"w": b"\xff"}}.items():
        suffix = name if isinstance(name, bytes) else name.encode()
        await backend.redis.hset(keys.WEBHOOK_PREFIX.encode() + suffix, mapping=fields)
        await backend.redis.zadd(keys.WEBHOOKS_DUE, {name: 1})
    await backend.redis.set(keys.WEBHOOK_PREFIX + "typed", "a string")
    await backend.redis.zadd(keys.WEBHOOKS_DUE, {"typed": 1})
    await backend.webhooks.add(real, 0)
    assert [claim.webhook for claim in await backend.webhooks.claim(10, 60)] == [real]
    assert foreign(backend)["webhooks"] == 5
    assert await backend.redis.zcard(keys.WEBHOOKS_DUE) == 1


async def test_junk_among_files_and_batches_hides_none(backend: Backend, settings: Settings) -> None:
    assert backend.server is not None
    files = FileRecords(backend.server, most_bytes=1000)
    record = FileRecord(
        id="file-1", tenant="t", filename="f", purpose="batch", size=1, created_at=1.0, expires_at=9e9
    )
    records, sizes, ends = keys.FILES
    await backend.redis.hset(records, "junk", "{")
    await backend.redis.hset(sizes, "", "many")
    await backend.redis.zadd(keys.files_of("t"), {"junk": 9e12})
    await backend.redis.zadd(ends, {"junk": 1})
    await files.add(record)
    assert list(await files.list("t", after="", most=1, oldest_first=False)) == [record]
    assert list(await files.ended(10.0, 10)) == []
    batches = Batches.from_settings(settings, backend.server)
    batch = batch_record(tenant="t")
    await batches.create(batch)
    await backend.redis.hset(keys.batch("batch_x")[0], "status", "completed")
    await backend.redis.zadd(keys.batches_of("t"), {"batch_x": 9e12})
    await backend.redis.zadd(keys.OPEN_BATCHES, {b"\xff": 1})
    assert [found.batch.id for found in await batches.list("t", after="", most=10)] == ["batch_1"]
    with pytest.raises(NotFound):
        await batches.get("batch_x")
    assert "batch_1" in await batches.open()


async def test_junk_in_the_ledger_keeps_no_end_from_being_settled(backend: Backend) -> None:
    assert backend.server is not None
    ledger = Ledger(backend.server, most_unwritten=100)
    open_, due, ended = keys.LEDGER
    for i, junk in enumerate((b"{", b"5", b"[]", b'[1, "{", "["]', b"\xff")):
        await backend.redis.hset(open_, f"junk{i}", junk)
        await backend.redis.hset(ended, f"done{i}", junk)
        await backend.redis.zadd(due, {f"junk{i}": 1, f"done{i}": 1})
    await ledger.charge(Charge("req_real", Entry("t", MODEL), ()))
    await backend.redis.zadd(due, {"req_real": 1})
    assert [each.job_id for each in await ledger.claim(100)] == ["req_real"]
    assert [entry is not None for entry in await ledger.settle([("req_real", 5, None)])] == [True]
    assert foreign(backend)["ledger"] == 10
