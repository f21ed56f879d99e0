"""Fixtures for tests of the engine: tiny checkpoints and the embedding model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkpoints import CONFIGS, save_checkpoint
from workers.engine.config import EngineConfig
from workers.engine.encoder_engine import EncoderEngine


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of the tiny checkpoint with that name in CONFIGS, created at first use."""
    made: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in made:
            sharding = {"max_shard_size": "20KB"} if name == "llama-biased" else {}
            made[name] = save_checkpoint(tmp_path_factory.mktemp(name), CONFIGS[name], **sharding)
        return made[name]

    return checkpoint


@pytest.fixture(scope="session")
def llama(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("llama")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache that has only the kernels, and in which a short text calibrates models."""
    monkeypatch.setattr("workers.engine.calibration.load.MAX_TOKENS", 1024)  # not in the user's cache
    built = EngineConfig(Path()).cache_dir
    assert built is not None
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernels").symlink_to(built / "kernels")
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def embedder(minilm: Path) -> EncoderEngine:
    """The real embedding model, with steps of at most 64 tokens."""
    return EncoderEngine.load(EngineConfig(minilm, max_num_batched_tokens=64))
