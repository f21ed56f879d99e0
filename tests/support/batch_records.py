"""Records of batches, as the API creates them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from producer_api.batch_runner.lines import survey
from producer_api.batch_runner.services import BatchServices
from producer_api.batch_runner.work_folder import WorkFolder
from shared.batches.store import Batch, BatchRecord
from tests.support.waiting import LIMIT_S

CHUNK_LINES = 4  # of the fixture `services`


def batch_record(name: str = "batch_1", **fields: Any) -> Batch:
    """Return a batch of chat completions that does not expire."""
    given = {
        "tenant": "default",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "completion_window": "24h",
        "created_at": 1.0,
        "expires_at": 9e9,
        "output_life": 60,
    }
    return Batch(id=name, **{**given, **fields})


@asynccontextmanager
async def planned(
    services: BatchServices, lines: Sequence[dict[str, Any]], **fields: Any
) -> AsyncIterator[BatchRecord]:
    """Create a batch whose input is checked and divided into chunks of work."""
    batch = batch_record(**fields)
    folder = WorkFolder(services.settings.files / "batches", batch.id)
    folder.input.parent.mkdir(parents=True)
    folder.input.write_text("".join(json.dumps(each) + "\n" for each in lines))
    await services.batches.create(batch)
    item = await services.batches.claim(batch.id)
    assert item is not None
    found = survey(folder.input, batch, most_lines=1000, most_bytes=10_000)
    assert await services.batches.plan(item, found.total, found.chunks)
    async with asyncio.timeout(LIMIT_S):
        yield await services.batches.get(batch.id)
