"""A cluster to test with: a mock in this process, or the broker whose address is in TEST_KAFKA."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from shared.config import Settings
from tests.kafka import mock

BROKER = os.environ.get("TEST_KAFKA", "")


@pytest.fixture(scope="session")
def bootstrap() -> Iterator[str]:
    if BROKER:
        yield BROKER
        return
    cluster = mock.MockCluster()
    yield cluster.bootstrap


@pytest.fixture(scope="session", autouse=True)
def kept_offsets() -> None:
    if not BROKER:
        mock.keep_offsets()


@pytest.fixture
def settings(settings: Settings, bootstrap: str) -> Settings:
    """Of a model that no test before had topics for."""
    return settings.model_copy(
        update={
            "kafka_bootstrap": bootstrap,
            "kafka_api_version": None if BROKER else mock.VERSION,
            "served_model_name": f"m{secrets.token_hex(4)}",
        }
    )
