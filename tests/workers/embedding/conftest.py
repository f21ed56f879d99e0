"""The real embedding model as an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.engine.config import EngineConfig
from workers.engine.embedding_engine import EmbeddingEngine


@pytest.fixture(scope="session")
def embedder(minilm: Path) -> EmbeddingEngine:
    return EmbeddingEngine.load(EngineConfig(minilm, max_num_batched_tokens=64))
