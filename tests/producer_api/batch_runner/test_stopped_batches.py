"""Batches that were cancelled or expired before another process took their chunks over; lines in an outage."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from producer_api.auth.principal import Principal
from producer_api.batch_runner.batch_runner import BatchRunner
from producer_api.batch_runner.line_body import CHAT, read_body
from producer_api.batch_runner.run_request import run
from producer_api.batch_runner.services import BatchServices
from shared.backend import Backend
from shared.batches.store import BatchRecord
from shared.errors import Unavailable
from shared.protocol import Request, line_job_id
from shared.token_log.interface import OVERDUE
from tests.support.batch_client import line
from tests.support.batch_records import planned
from tests.support.fakes import make_request
from tests.support.waiting import LIMIT_S

LINES = [line(f"c{number}", f"prompt {number}") for number in range(1, 7)]
PAST, FUTURE = 2.0000004, 9e9  # records round the former down


async def take_over(services: BatchServices, backend: Backend, record: BatchRecord) -> BatchRecord:
    """Work on the batch after a process that finished line 1, whose line 2 took too long, and whose line 3 runs."""
    first, second, third, fourth = (line_job_id("batch_1", number) for number in range(1, 5))
    body = read_body(CHAT, json.dumps(LINES[0]["body"]).encode(), "default", strict_fields=False)
    await run(services, body, job_id=first, seed=1, principal=Principal("default"))
    request = make_request(deadline=PAST - 1)
    for job_id in (second, third):
        await backend.token_log.create(msgspec.structs.replace(request, id=job_id))
    await backend.token_log.close(second, OVERDUE)
    await backend.token_log.create(msgspec.structs.replace(request, id=fourth, deadline=record.batch.expires_at))
    await backend.token_log.close(fourth, OVERDUE)
    await BatchRunner(services, record, asyncio.Semaphore(64)).run()
    for job_id, state in ((third, "cancelled"), (line_job_id("batch_1", 5), None)):
        left = await backend.token_log.record(job_id)
        assert (left and left.state.value) == state  # what ran is cancelled, what did not never begins
    return await services.batches.get("batch_1")


def results(services: BatchServices, file_id: str | None) -> dict[str, Any]:
    """Return the status or the error code of each line of a file, by its custom id."""
    assert file_id is not None
    found = {}
    for each in map(json.loads, services.files.contents.find(file_id).read_text().splitlines()):
        assert each["custom_id"] not in found
        found[each["custom_id"]] = each["error"]["code"] if each["error"] else each["response"]["status_code"]
    return found


@pytest.mark.parametrize("status", ["cancelled", "expired"])
async def test_lines_that_ended_before_keep_their_result(
    services: BatchServices, backend: Backend, status: str
) -> None:
    async with planned(services, LINES, expires_at=PAST if status == "expired" else FUTURE) as record:
        if status == "cancelled":
            await services.batches.cancel("batch_1")
        ended = await take_over(services, backend, record)
        assert (ended.status, ended.completed, ended.failed) == (status, 1, 5)
        assert results(services, ended.output_file_id) == {"c1": 200}
        stopped = dict.fromkeys(("c3", "c4", "c5", "c6"), f"batch_{status}")
        assert results(services, ended.error_file_id) == {"c2": 504, **stopped}


async def test_lines_that_another_process_cancelled_are_cancelled(
    services: BatchServices, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a process that lost the chunk to this one, and that learns of the batch's cancellation first."""
    create = backend.token_log.create

    async def create_and_cancel(request: Request, **options: Any) -> bool:
        created = await create(request, **options)
        await services.batches.cancel("batch_1")
        await backend.token_log.close(request.id)
        return created

    async with planned(services, LINES) as record:
        monkeypatch.setattr("producer_api.batch_runner.batch_runner.CHECK_INTERVAL_S", LIMIT_S)
        monkeypatch.setattr(backend.token_log, "create", create_and_cancel)
        await BatchRunner(services, record, asyncio.Semaphore(64)).run()
        ended = await services.batches.get("batch_1")
        assert (ended.status, ended.output_file_id) == ("cancelled", None)
        expected = {each["custom_id"]: "batch_cancelled" for each in LINES}
        assert results(services, ended.error_file_id) == expected


async def test_lines_that_begin_in_an_outage_wait(
    services: BatchServices, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a Redis that is away when each line looks up the model and the time."""
    monkeypatch.setattr("producer_api.batch_runner.run_request.RETRY_DELAY_S", 0.0)
    away = {"any_model": len(LINES), "now": len(LINES)}
    calls = {"any_model": services.gateway.any_model, "now": backend.token_log.now}

    async def call(name: str) -> Any:
        away[name] -= 1
        if away[name] >= 0:
            raise Unavailable("Redis is away")
        return await calls[name]()

    monkeypatch.setattr(services.gateway, "any_model", lambda: call("any_model"))
    async with planned(services, LINES) as record:
        monkeypatch.setattr(backend.token_log, "now", lambda: call("now"))
        while (await services.batches.get("batch_1")).status != "completed":
            await BatchRunner(services, record, asyncio.Semaphore(64)).run()
        ended = await services.batches.get("batch_1")
        assert (ended.completed, ended.failed, max(away.values()) < 0) == (len(LINES), 0, True)
