"""A request with a token log."""

from __future__ import annotations

import pytest

from shared.backend import Backend
from shared.protocol import Request
from tests.support.log_calls import created


@pytest.fixture
async def request_(backend: Backend) -> Request:
    return await created(backend)
