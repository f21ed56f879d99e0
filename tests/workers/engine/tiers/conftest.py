"""Fixtures for tests of KV tiers: options of each kind of store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from shared.redis.embedded import EmbeddedServer
from tests.support.kv_tiers import MIN_TOKENS
from workers.engine.tiers.options import TierOptions

Options = Callable[[str], TierOptions]


@pytest.fixture
def options(valkey: EmbeddedServer, tmp_path: Path) -> Options:
    """Return the options of a kind of store, which all engines of the test share."""
    folder = tmp_path / "tier"

    def make(kind: str) -> TierOptions:
        if kind == "redis":
            with redis.Redis.from_url(valkey.url) as client:
                client.flushall()
        return TierOptions(kind, 2**26, folder, valkey.url, ttl=600, min_tokens=MIN_TOKENS)  # type: ignore[arg-type]

    return make
