"""Cluster of real processes on the scripted engine, for batch runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from tests.support.cluster import Cluster, running


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def cluster(tmp_path_factory: Any) -> AsyncIterator[Cluster]:
    async with running(tmp_path_factory.mktemp("batch"), apis=1, workers=1, queue_depth=8) as made:
        yield made
