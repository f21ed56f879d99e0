"""Client of the batch API, made of the `openai` package, and a cluster with tasks processes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai

from tests.support.cluster import Cluster, running
from tests.support.fakes import MODEL
from tests.support.waiting import LIMIT_S

ENDED = ("completed", "failed", "expired", "cancelled")
CHAT = "/v1/chat/completions"


def line(custom_id: str, content: str = "hello", max_tokens: int = 4, **body: Any) -> dict[str, Any]:
    """Return one line of a batch's input."""
    messages = [{"role": "user", "content": content}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": MODEL, "messages": messages, "max_tokens": max_tokens, **body},
    }


def jsonl(lines: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


class BatchClient:
    """Client that starts batches and reads their results."""

    def __init__(self, url: str) -> None:
        self.sdk = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=20)

    def start(
        self, lines: Iterable[Any], window: Any = "24h", endpoint: Any = CHAT, **more: Any
    ) -> openai.types.Batch:
        file = self.sdk.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
        asked = {"input_file_id": file.id, "endpoint": endpoint, "completion_window": window}
        return self.sdk.batches.create(**asked, extra_body=more)

    def results(self, batch: openai.types.Batch) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the lines of the output file and of the error file."""
        return self._lines(batch.output_file_id), self._lines(batch.error_file_id)

    def _lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        return [json.loads(each) for each in self.sdk.files.content(file_id).text.splitlines()]


def ids(*files: Iterable[dict[str, Any]]) -> Counter[str]:
    """Count each custom_id over the files."""
    return Counter(each["custom_id"] for file in files for each in file)


@asynccontextmanager
async def with_tasks(folder: Path, *, tasks: int, **settings: Any) -> AsyncIterator[Cluster]:
    """Run a cluster with `tasks` tasks processes."""
    common = {
        "files_dir": folder / "files",
        "data_dir": folder,
        "max_attempts": 100,
        "max_num_seqs": 128,
        **settings,
    }
    async with running(folder, apis=1, workers=1, **common) as cluster:
        for _ in range(tasks):
            await cluster.add("tasks", cluster.apis[0].environment).start()
        yield cluster


POLL_S = 0.05


async def until(client: BatchClient, batch_id: str, reached: Callable[[Any], bool]) -> Any:
    """Wait until a batch satisfies `reached`, and return it."""
    deadline = time.monotonic() + LIMIT_S
    while not reached(batch := await asyncio.to_thread(client.sdk.batches.retrieve, batch_id)):
        assert time.monotonic() < deadline, batch
        await asyncio.sleep(POLL_S)
    return batch
