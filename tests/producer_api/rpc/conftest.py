"""gRPC server of the API on a free port, and a client made from the service definition."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.grpc_client import Client, serving
from tests.support.scripted_worker import ScriptedWorker


@pytest.fixture
async def worker(backend: Backend) -> ScriptedWorker:
    scripted = ScriptedWorker(backend)
    await scripted.announce()
    return scripted


@pytest.fixture
async def client(settings: Settings, backend: Backend, worker: ScriptedWorker) -> AsyncIterator[Client]:
    async with serving(settings, backend) as (_, made):
        yield made
