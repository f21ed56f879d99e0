"""The ledger has no version in memory."""

from __future__ import annotations

import pytest

from shared.backend import Backend


@pytest.fixture
def backend(on_redis: Backend) -> Backend:
    return on_redis
