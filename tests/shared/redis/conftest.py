"""These tests need a server, so `backend` is on Redis only."""

from __future__ import annotations

import pytest

from shared.backend import Backend


@pytest.fixture
def backend(on_redis: Backend) -> Backend:
    return on_redis
