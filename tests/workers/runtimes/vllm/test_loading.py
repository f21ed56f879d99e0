"""Runtime "vllm" where vLLM is not installed, or not a version that it supports."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from shared.errors import ConfigError
from shared.models.model_store import ModelRepository
from shared.models.startup_progress import StartupProgress
from shared.settings import load
from workers.runtimes.select import load_runtime


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what loading sets in the environment."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_a_missing_vllm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    settings = load({"runtime": "vllm", "model": "smollm2"}).settings
    with pytest.raises(ConfigError, match=r"install headrace\[vllm\]") as caught:
        load_runtime(settings, ModelRepository(settings), StartupProgress())
    assert caught.value.param == "runtime"


def test_an_unknown_version_of_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("vllm")
    other.__version__ = "0.99.1"  # type: ignore[attr-defined]  # a module of the test
    monkeypatch.setitem(sys.modules, "vllm", other)
    settings = load({"runtime": "vllm", "model": "smollm2"}).settings
    with pytest.raises(ConfigError, match=r"supports vLLM 0\.32, but 0\.99\.1"):
        load_runtime(settings, ModelRepository(settings), StartupProgress())


@pytest.mark.parametrize("name", ["tiny.gguf", "model.gguf"])
def test_a_gguf_file_is_refused(tmp_path: Path, name: str) -> None:
    """Named itself, or by its folder, as in a model repository."""
    (tmp_path / name).touch()
    model = tmp_path if name == "model.gguf" else tmp_path / name
    settings = load({"runtime": "vllm", "model": str(model)}).settings
    with pytest.raises(ConfigError, match=r"vLLM 0\.32 does not read GGUF files, which /.* is or holds"):
        load_runtime(settings, ModelRepository(settings), StartupProgress())
