"""Fixtures for tests of the engine: tiny checkpoints, the embedding model, and shared compile sandboxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from xgrammar import TokenizerInfo

from tests.support.checkpoints import CONFIGS, save_checkpoint
from workers.engine.config import EngineConfig
from workers.engine.embedding_engine import EmbeddingEngine
from workers.engine.grammar import compile_sandbox


@pytest.fixture(scope="session", autouse=True)
def trial_processes() -> Iterator[None]:
    """Share one sandbox process between engines with the same tokenizer; each takes seconds to start."""
    start, started = compile_sandbox._SandboxProcess, dict[str, compile_sandbox._SandboxProcess]()

    def running(info: TokenizerInfo) -> compile_sandbox._SandboxProcess:
        name = info.serialize_json()
        if name not in started or started[name].ended:
            started[name] = start(info)
        return started[name]

    with patch.object(compile_sandbox, "_SandboxProcess", running):
        yield


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


@pytest.fixture(scope="session")
def embedder(minilm: Path) -> EmbeddingEngine:
    """The real embedding model, with steps of at most 64 tokens."""
    return EmbeddingEngine.load(EngineConfig(minilm, max_num_batched_tokens=64))
