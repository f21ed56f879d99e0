"""Receiver of webhooks: a real HTTP server with scripted answers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared.settings import Settings
from tests.support.webhook_receiver import OTHER, SECRET, Receiver, receiving


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
def settings(settings: Settings) -> Settings:
    secrets = type(settings.webhook_secrets)(f"{SECRET} {OTHER}")
    allowed = {"webhook_allow_http": True, "webhook_allow_private": True, "webhook_timeout": 60.0}
    return settings.model_copy(update={"webhook_secrets": secrets, **allowed})
