"""Work that a start does at the same time: the kernels are built beside the download and the tokenizer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shared.models.model_store import ModelRepository
from shared.models.startup_progress import StartupProgress
from shared.settings import Settings
from tests.support.waiting import LIMIT_S
from workers.engine import engine as engine_module
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.kernels import select
from workers.runtimes import native


def test_kernels_are_built_while_the_model_is_downloaded(
    settings: Settings, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building = threading.Event()

    class Downloading(ModelRepository):
        def folder(self, progress: StartupProgress | None = None) -> Path:
            assert building.wait(LIMIT_S)
            return llama

    monkeypatch.setattr(select, "build_ahead", lambda config: building.set())
    own = settings.model_copy(update={"model": str(llama), "kv_cache_gib": 0.01})
    assert native.load(own, Downloading(own), StartupProgress()).task == "generate"


def test_kernels_are_chosen_while_the_tokenizer_loads(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choosing, tokenizing = threading.Event(), threading.Event()
    choose, tokenizer = engine_module.choose_kernels, engine_module.Tokenizer

    def choose_kernels(*args: object) -> object:
        choosing.set()
        assert tokenizing.wait(LIMIT_S)
        return choose(*args)

    def load_tokenizer(*args: object, **options: object) -> object:
        tokenizing.set()
        assert choosing.wait(LIMIT_S)
        return tokenizer(*args, **options)

    monkeypatch.setattr(engine_module, "choose_kernels", choose_kernels)
    monkeypatch.setattr(engine_module, "Tokenizer", load_tokenizer)
    Engine.load(EngineConfig(llama, num_kv_blocks=16))
