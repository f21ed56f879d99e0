"""A server on a free port, and a worker that answers by a script."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from producer_api.app import create_app
from shared.backend import Backend
from shared.settings import Settings
from tests.support.api_server import calling, serving
from tests.support.kafka_mock import with_kafka
from tests.support.scripted_worker import ScriptedWorker


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a module's tests with each of its QUEUES."""
    if "queue" in metafunc.fixturenames:
        metafunc.parametrize("queue", getattr(metafunc.module, "QUEUES", ["redis"]))


@pytest.fixture
def queue() -> str:
    """Name of the queue that the API uses."""
    raise AssertionError("set by pytest_generate_tests")


@pytest.fixture
async def backend(backend: Backend, settings: Settings, queue: str, request: pytest.FixtureRequest) -> Backend:
    if queue == "redis":
        return backend
    return with_kafka(backend, settings, request.getfixturevalue("kafka_writer"))


@pytest.fixture
async def worker(backend: Backend) -> ScriptedWorker:
    scripted = ScriptedWorker(backend)
    await scripted.announce()
    return scripted


@pytest.fixture
async def api(settings: Settings, backend: Backend, worker: ScriptedWorker) -> AsyncIterator[str]:
    async with serving(settings, backend) as url:
        yield url


@pytest.fixture
async def app(settings: Settings, backend: Backend, worker: ScriptedWorker) -> AsyncIterator[FastAPI]:
    made = create_app(settings, backend)
    yield made
    await made.state.context.close()


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client that calls the application without a socket; streams arrive complete."""
    async with calling(app) as opened:
        yield opened
