"""Cluster with batch-runner processes, used through the `openai` package."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest_asyncio

from tests.producer_api.webhooks.conftest import SECRET
from tests.support.cluster import Cluster, running
from tests.support.fakes import MODEL

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
    """Operations of a user of the `openai` package."""

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
    """Count each custom_id in all files together."""
    return Counter(each["custom_id"] for file in files for each in file)


@asynccontextmanager
async def with_tasks(folder: Path, *, tasks: int, **settings: Any) -> AsyncIterator[Cluster]:
    """Run a cluster with `tasks` batch-runner processes."""
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


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def cluster(tmp_path_factory: Any) -> AsyncIterator[Cluster]:
    hooks = {"webhook_secrets": SECRET, "webhook_allow_http": True, "webhook_allow_private": True}
    async with with_tasks(tmp_path_factory.mktemp("batches"), tasks=2, **hooks) as made:
        yield made
