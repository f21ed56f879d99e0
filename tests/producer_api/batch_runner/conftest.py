"""Cluster with batch-runner processes, used through the `openai` package."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from tests.support.batch_client import with_tasks
from tests.support.cluster import Cluster
from tests.support.webhook_receiver import SECRET


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def cluster(tmp_path_factory: Any) -> AsyncIterator[Cluster]:
    hooks = {"webhook_secrets": SECRET, "webhook_allow_http": True, "webhook_allow_private": True}
    # with a shorter lease, a process that is only slow would lose its work to the other again and again
    async with with_tasks(tmp_path_factory.mktemp("batches"), tasks=2, lease=5, **hooks) as made:
        yield made
