"""Batches whose records in Redis another program overwrote or deleted: all their lines are answered."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Sequence

import pytest

from producer_api.batch_runner.batch_runner import BatchRunner
from producer_api.batch_runner.event_loop_host import EventLoopHost
from producer_api.batch_runner.services import BatchServices
from producer_api.batch_runner.work_folder import WorkFolder
from shared.backend import Backend
from shared.files.content import Draft
from shared.redis import keys
from shared.settings import Settings
from tests.support.batch_client import line
from tests.support.batch_records import CHUNK_LINES, planned
from tests.support.foreign_counts import foreign

RECORD, ITEMS, DETAILS = keys.batch("batch_1")
LINES = [line(f"c{number}", f"prompt {number}") for number in range(2 * CHUNK_LINES + 3)]
Damage = Callable[[Backend], Awaitable[object]]


async def custom_ids(services: BatchServices) -> list[str]:
    """Return the custom ids of the batch's output."""
    record = await services.batches.get("batch_1")
    assert (record.status, record.completed, record.failed) == ("completed", len(LINES), 0)
    assert record.output_file_id is not None
    output = services.files.contents.find(record.output_file_id)
    return [json.loads(each)["custom_id"] for each in output.read_text().splitlines()]


def overwrite(field: str, value: bytes) -> Damage:
    return lambda backend: backend.redis.hset(DETAILS, field, value)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(overwrite("chunk:00000001", b"\xff"), id="chunk"),
        pytest.param(overwrite("chunk:00000001", b"5 5 4"), id="chunk within a line"),
        pytest.param(overwrite("chunk:00000001", b"0 1 4"), id="another chunk"),
        pytest.param(overwrite("chunk:00000001", b"-1 5 1000000"), id="chunk out of range"),
        pytest.param(lambda backend: backend.redis.hdel(DETAILS, "chunk:00000002"), id="no chunk"),
        pytest.param(overwrite("fence:00000000", b"many"), id="epoch"),
        pytest.param(overwrite("fence:00000000", b"9223372036854775807"), id="largest epoch"),
        pytest.param(overwrite("completed:00000001", b"nan"), id="count"),
        pytest.param(lambda backend: backend.redis.zadd(ITEMS, {b"\xff": 0, "00000077": 0, "x": 1}), id="items"),
        pytest.param(lambda backend: backend.redis.zadd(ITEMS, {"finalize": 0}), id="finalize too early"),
        pytest.param(lambda backend: backend.redis.delete(ITEMS), id="no items"),
        pytest.param(lambda backend: backend.redis.set(ITEMS, "a string"), id="type"),
    ],
)
async def test_damaged_records_of_chunks_lose_no_line(
    services: BatchServices, backend: Backend, damage: Damage
) -> None:
    async with planned(services, LINES) as record:
        await damage(backend)
        while (await services.batches.get("batch_1")).status != "completed":
            await BatchRunner(services, record, asyncio.Semaphore(64)).run()
        assert await custom_ids(services) == [each["custom_id"] for each in LINES]


async def test_results_whose_record_is_overwritten_are_written_again(
    services: BatchServices, backend: Backend
) -> None:
    """An epoch is part of a file's name: a foreign one never gets there."""
    async with planned(services, LINES) as record:
        item = await services.batches.claim("batch_1")
        assert item is not None
        assert await services.batches.done(item, 0, 0, late=False)
        await backend.redis.hset(DETAILS, f"done:{item.name}", "../../../../etc/passwd")
        await BatchRunner(services, record, asyncio.Semaphore(64)).run()
        assert await custom_ids(services) == [each["custom_id"] for each in LINES]


async def test_a_batch_without_a_readable_record_is_set_aside(
    services: BatchServices, backend: Backend, settings: Settings
) -> None:
    async with planned(services, LINES):
        await backend.redis.hset(RECORD, "batch", "{")
        host = EventLoopHost(settings)
        host._services = services
        assert await host.idle_batches() == ["batch_1"]
        await host.run_batch("batch_1")
        assert await host.idle_batches() == []
        assert foreign(backend)["batches"] >= 1


@pytest.mark.parametrize("chunks", [0, 3], ids=["before its lines", "before its end"])
async def test_a_batch_whose_folder_is_deleted_fails(
    services: BatchServices, settings: Settings, chunks: int
) -> None:
    """It does not run for ever, nor end with a part of its results."""
    async with planned(services, LINES) as record:
        for _ in range(chunks):
            item = await services.batches.claim("batch_1")
            assert item is not None and await services.batches.done(item, 1, 0, late=False)
        shutil.rmtree(services.settings.files / "batches" / "batch_1")
        await BatchRunner(services, record, asyncio.Semaphore(64)).run()
        ended = await services.batches.get("batch_1")
    assert (ended.status, ended.output_file_id) == ("failed", None)
    assert [error.code for error in ended.errors] == ["invalid_input_file"]
    assert await services.batches.idle() == []


async def test_a_part_of_the_results_is_never_stored(
    services: BatchServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a process that is late in joining them: another one has ended the batch and deletes its folder."""
    concatenate, overtaken = WorkFolder.concatenate, False

    def late(folder: WorkFolder, lease_epochs: Sequence[str], kind: str, draft: Draft) -> None:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            write, draft.write = draft.write, lambda data: (write(data), folder.remove())  # type: ignore[method-assign]
        concatenate(folder, lease_epochs, kind, draft)

    async with planned(services, LINES) as record:
        monkeypatch.setattr(WorkFolder, "concatenate", late)
        await BatchRunner(services, record, asyncio.Semaphore(64)).run()
        assert (await services.batches.get("batch_1")).output_file_id is None
        assert list((services.settings.files / "content").iterdir()) == []


async def test_a_batch_that_begins_during_upkeep_keeps_its_folder(
    services: BatchServices, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = EventLoopHost(settings)
    host._services = services
    look, began = services.batches.open, asyncio.Event()

    async def looked() -> Sequence[str]:
        found = await look()
        if not began.is_set():
            began.set()
            (root / "batch_new").mkdir(parents=True)
        return found

    root = settings.files / "batches"
    (root / "batch_ended").mkdir(parents=True)
    monkeypatch.setattr(services.batches, "open", looked)
    await host.tidy()
    assert [path.name for path in root.iterdir()] == ["batch_new"]
