"""Calibrated weights: made once, kept in the cache, and the same for every kind of kernels that computes alike."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from tests.support.engine_driver import load, run
from workers.engine.calibration import formats
from workers.engine.calibration import load as calibration
from workers.engine.kernels import select
from workers.engine.kernels.build import load_library
from workers.engine.quantization.grouped_weight import GroupedWeight

AVX512_PANEL = 32  # columns: two vectors
PROMPTS = [list(b"a river runs"), list(b"to the mill, and "), [7]]


def answers(folder: Path, cache: Path | None, **settings: Any) -> list[list[int]]:
    return run(load(folder, quantization="int4", device="cpu", cache_dir=cache, **settings), PROMPTS)


def test_a_model_is_calibrated_once(
    llama: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a copy of it, but not for other weights."""
    first = load(llama, quantization="int4", device="cpu", cache_dir=cache)
    [kept] = (cache / "int4").glob("*.safetensors")
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    with monkeypatch.context() as patched:
        patched.setattr(calibration, "_calibrate", lambda *_: pytest.fail("the model was calibrated before"))
        second = load(folder, quantization="int4", device="cpu", cache_dir=cache)
    assert run(first, PROMPTS) == run(second, PROMPTS)
    assert first.fingerprint == second.fingerprint
    tensors = load_file(folder / "model.safetensors")
    changed = {name: -tensor if "o_proj" in name else tensor for name, tensor in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    answers(folder, cache)
    assert len(list((cache / "int4").glob("*.safetensors"))) == len([kept, "of the changed weights"])


def test_weights_of_another_version_are_replaced(llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints = []
    for version in ("one", "two"):
        monkeypatch.setattr(calibration, "_identity", lambda kernels, version=version: version)
        fingerprints.append(load(llama, quantization="int4", device="cpu", cache_dir=cache).fingerprint)
        [kept] = (cache / "int4").glob("*.safetensors")
        assert kept.name.split(".")[1] == version
    assert len(set(fingerprints)) == len(fingerprints)


def test_without_space_weights_are_rounded_at_each_start(
    llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(llama, cache)
    shutil.rmtree(cache / "int4")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(calibration, "make_once", refuse)
    with capture_logs() as logs:
        assert answers(llama, cache) == expected
    assert [each["reason"] for each in logs if each["event"] == "int4_not_cached"] == ["No space left on device"]


def test_experts_without_rows_have_the_nearest_integers(
    checkpoints: Callable[[str], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a text so short that some experts get none of it."""
    monkeypatch.setattr(calibration, "MAX_TOKENS", 2)
    rounded: list[bool] = []
    finish = formats.RoundingLinear.rounded

    def record(layer: formats.RoundingLinear) -> GroupedWeight:
        rounded.append(layer._rounded is not None)
        return finish(layer)

    monkeypatch.setattr(formats.RoundingLinear, "rounded", record)
    found = answers(checkpoints("mixtral"), cache)
    assert set(rounded) == {False, True}
    assert len(found) == len(PROMPTS)


@pytest.mark.slow
def test_integers_do_not_depend_on_the_width_of_vectors(
    llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = load_library(cache / "kernels").hr_panel()
    flags = ("-march=x86-64-v3",) if native == AVX512_PANEL else ("-DHEADRACE_LANES=16",)
    found = []
    for options in ((), flags):
        monkeypatch.setattr(select, "load_library", partial(load_library, extra_flags=options))
        answers(llama, cache)
        [kept] = (cache / "int4").glob("*.safetensors")
        found.append(load_file(kept))
        kept.unlink()
    one, two = found
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
