"""Cluster with batch-runner processes, used through the `openai` package; batch services beside a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from producer_api.batch_runner.services import BatchServices
from shared.backend import Backend
from shared.settings import Settings
from tests.support.batch_client import with_tasks
from tests.support.batch_records import CHUNK_LINES
from tests.support.cluster import Cluster
from tests.support.webhook_receiver import SECRET
from tests.support.worker_harness import Harness


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def cluster(tmp_path_factory: Any) -> AsyncIterator[Cluster]:
    hooks = {"webhook_secrets": SECRET, "webhook_allow_http": True, "webhook_allow_private": True}
    # with a shorter lease, a process that is only slow would lose its work to the other again and again
    async with with_tasks(tmp_path_factory.mktemp("batches"), tasks=2, lease=5, **hooks) as made:
        yield made


@pytest.fixture
async def services(
    backend: Backend, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[BatchServices]:
    monkeypatch.setattr("producer_api.batch_runner.lines.CHUNK_LINES", CHUNK_LINES)
    roomy = settings.model_copy(update={"queue_depth": 1000, "tenant_queue_depth": 1000})
    made = BatchServices.from_settings(roomy, backend)
    listening = asyncio.create_task(made.completions.run())
    async with Harness(backend, settings).worker():
        yield made
    listening.cancel()
