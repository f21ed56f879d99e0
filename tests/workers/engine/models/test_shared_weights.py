"""Packed weights in a file that the workers of a machine map."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from tests.support.engine_driver import load, run
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.quantization.cpp_linear import CppLinear
from workers.engine.quantization.grouped_linear import CppGroupedLinear
from workers.engine.quantization.int8 import CppInt8Linear

PROMPTS = [[5, 6, 7, 8], [9, 10]]
Start = Callable[..., Engine]


@pytest.fixture
def checkpoint(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Empty cache, but for the kernels."""
    made = tmp_path / "cache"
    made.mkdir()
    built = EngineConfig(Path()).cache_dir
    assert built is not None
    (built / "kernels").mkdir(parents=True, exist_ok=True)
    (made / "kernels").symlink_to(built / "kernels")
    return made


@pytest.fixture
def start(checkpoint: Path, cache: Path) -> Start:
    """Return a function that loads an engine with shared weights."""

    def start(**settings: object) -> Engine:
        return load(checkpoint, **{"cache_dir": cache, "shared_weights": True, **settings})

    return start


def files(cache: Path) -> list[Path]:
    return sorted((cache / "weights").glob("*.weights"))


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_weights_are_packed_once_and_then_mapped(
    start: Start, cache: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    own = run(start(shared_weights=False, quantization=quantization), PROMPTS)
    assert run(start(quantization=quantization), PROMPTS) == own
    [made] = files(cache)
    for kind in (CppLinear, CppInt8Linear, CppGroupedLinear):
        monkeypatch.setattr(kind, "_pack", lambda *_: pytest.fail("the weights are packed already"))
    assert run(start(quantization=quantization), PROMPTS) == own
    assert files(cache) == [made]


def test_a_changed_checkpoint_is_packed_again(start: Start, checkpoint: Path, cache: Path) -> None:
    before = run(start(), PROMPTS)
    [old] = files(cache)
    tensors = load_file(checkpoint / "model.safetensors")
    changed = {name: -tensor if "o_proj" in name else tensor for name, tensor in tensors.items()}
    save_file(changed, checkpoint / "model.safetensors", metadata={"format": "pt"})
    after = run(start(), PROMPTS)
    assert after == run(start(shared_weights=False), PROMPTS) != before
    [new] = files(cache)
    assert new != old


def test_without_space_each_worker_has_its_own_weights(
    start: Start, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with capture_logs() as logs:
        answers = run(start(), PROMPTS)
    assert [each["reason"] for each in logs if each["event"] == "weights_not_shared"] == ["No space left on device"]
    assert answers == run(start(shared_weights=False), PROMPTS)
    assert files(cache) == []
