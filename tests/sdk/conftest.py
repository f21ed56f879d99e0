"""Real server with two workers: the scripted engine and the embedding model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.fakes import EMBEDDER
from tests.support.worker_harness import Harness
from workers.engine.config import EngineConfig
from workers.engine.encoder_engine import EncoderEngine


@pytest.fixture(scope="package")
def engine(minilm: Path) -> EncoderEngine:
    return EncoderEngine.load(EngineConfig(minilm))


@pytest.fixture
async def api(settings: Settings, backend: Backend, engine: EncoderEngine) -> AsyncIterator[str]:
    harness = Harness(backend, settings)
    async with (
        harness.worker(),
        harness.worker(engine, "b", EMBEDDER),
        serving(settings, backend) as url,
    ):
        while len(await backend.registry.models()) < 2:
            await asyncio.sleep(0)
        yield url
