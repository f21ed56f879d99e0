"""Queues of each kind, and calls on them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared.backend import Backend
from shared.queue.interface import Transport
from shared.settings import Settings
from tests.support.backends import opened
from tests.support.kafka_mock import with_kafka


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"queue_depth": 4, "tenant_queue_depth": 4})


@pytest.fixture(params=["redis", "memory", "kafka"])
async def backend(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[Backend]:
    """Open a backend; with `kafka`, requests are reserved, written to a topic, and published from there at once."""
    made = await opened("memory" if request.param == "memory" else "redis", settings)
    if request.param == "kafka":
        made = with_kafka(made, settings, request.getfixturevalue("kafka_writer"))
    yield made
    await made.close()


@pytest.fixture
def transport(backend: Backend) -> Transport:
    return backend.transport


@pytest.fixture
def roomy(settings: Settings) -> Settings:
    return settings.model_copy(update={"queue_depth": 1000, "tenant_queue_depth": 1000})
