"""A server whose worker computes LoRA adapters of a tiny model, and an engine to compare its answers with."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.adapters import save_adapter
from tests.support.api_server import serving
from tests.support.checkpoints import CONFIGS, save_checkpoint
from tests.support.engine_driver import load
from tests.support.lora_api import TINY
from tests.support.worker_harness import Harness
from workers.engine.engine import Engine
from workers.worker import Worker


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny"), CONFIGS["llama"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def engine(checkpoint: Path, folder: Path) -> Engine:
    return load(checkpoint, lora_dir=folder)


@pytest.fixture(scope="module")
def alone(checkpoint: Path, folder: Path) -> Engine:
    return load(checkpoint, lora_dir=folder)


@pytest.fixture
def adapters(checkpoint: Path, folder: Path) -> Path:
    shutil.rmtree(folder)
    for seed, name in enumerate("ab"):
        save_adapter(folder / name, checkpoint, seed=seed)
    return folder


@pytest.fixture
def settings(settings: Settings, folder: Path) -> Settings:
    given = {"served_model_name": TINY, "lora_dir": folder, "runtime_lora_updating": True, "max_loras": 1}
    return settings.model_copy(update=given)


@pytest.fixture
async def worker(settings: Settings, backend: Backend, engine: Engine) -> AsyncIterator[Worker]:
    async with Harness(backend, settings, fingerprinted=True).worker(engine, "t", TINY) as running:
        yield running


@pytest.fixture
async def http(
    settings: Settings, backend: Backend, adapters: Path, worker: Worker
) -> AsyncIterator[httpx.AsyncClient]:
    await backend.registry.beat(worker._heartbeat())
    async with serving(settings, backend) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client
