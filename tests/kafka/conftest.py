"""Kafka brokers and settings for tests: a mock in this process, or the brokers in TEST_KAFKA."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from headrace.bench.kafka import mock_kafka
from shared.backend import Backend
from shared.kafka import topics
from shared.redis.embedded import EmbeddedServer
from shared.settings import Settings
from tests.support import kafka_mock
from tests.support.fakes import MODEL
from tests.support.kafka_bench import Bench
from tests.support.kafka_mock import BROKER


@pytest.fixture(scope="session", autouse=True)
def adapted_mock(valkey: EmbeddedServer) -> None:
    if not BROKER:
        mock_kafka.adapt(valkey.url)


@pytest.fixture(autouse=True)
def short_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use short sessions: the mock needs a session timeout to assign partitions. Real brokers may refuse them."""
    if not BROKER:
        monkeypatch.setattr("workers.kafka.consumer_thread.SESSION_TIMEOUT_MS", kafka_mock.SESSION_TIMEOUT_MS)


@pytest.fixture
def settings(settings: Settings, bootstrap: str) -> Settings:
    """Settings with a model that has topics of its own."""
    model = f"m{secrets.token_hex(4)}"
    own = (topics.requests(model), topics.api_requests(model), f"results-{model}")
    kafka_mock.make_topics(bootstrap, *own, topics.api_requests(MODEL), topics.RESULTS, topics.DEAD_LETTERS)
    own_settings = {
        "grace": 1,
        "lease": 3,  # tests kill workers
        "served_model_name": model,
        "redis_timeout": 5,
    }  # joining a group keeps the machine busy
    return settings.model_copy(update={**kafka_mock.address(bootstrap), **own_settings})


@pytest.fixture
def bench(settings: Settings, backend: Backend) -> Iterator[Bench]:
    made = Bench(settings, backend)
    yield made
    made.close()
