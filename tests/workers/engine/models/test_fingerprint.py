"""Fingerprints: what an engine's bits depend on, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from workers.engine.kernels.torch_kernels import TorchKernels
from workers.engine.models import fingerprint as module
from workers.engine.models.fingerprint import describe_computation, fingerprint, hash_weights, kernels_identity

CPU = torch.device("cpu")
SIZE = 3 * 2**20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a checkpoint whose hashes are kept although it is small."""
    monkeypatch.setattr(module, "SMALL_BYTES", 0)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(SIZE))
    return tmp_path


def change(file: Path, at: int) -> None:
    """Change one byte, and neither the size nor the inode."""
    before = file.stat().st_mtime_ns
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(b"\1")
    os.utime(file, ns=(before + 1_000_000, before + 1_000_000))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("at", [0, SIZE // 2, SIZE - 1])
def test_every_byte_of_the_weights_counts(folder: Path, at: int, cached: bool) -> None:
    cache = folder / "cache" if cached else None
    before = hash_weights(folder, cache)
    assert hash_weights(folder, cache) == before
    change(folder / "model.safetensors", at)
    assert hash_weights(folder, cache) != before


def test_the_names_of_files_and_the_configuration_count(folder: Path) -> None:
    before = hash_weights(folder, None)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    renamed = hash_weights(folder, None)
    (folder / "config.json").write_text('{"rope_theta": 1}')
    assert len({before, renamed, hash_weights(folder, None)}) == 3


def test_unchanged_files_are_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = folder / "cache"
    before = hash_weights(folder, cache)
    monkeypatch.setattr(module, "_hash", pytest.fail)
    assert hash_weights(folder, cache) == before


@pytest.mark.parametrize("junk", [b"", b"\n", b"a\nb\nc", b"\xff\xfe", b"x" * 4096])
def test_junk_in_the_cache_is_replaced(folder: Path, junk: bytes) -> None:
    cache = folder / "cache"
    before = hash_weights(folder, cache)
    for file in (cache / "hashes").iterdir():
        file.write_bytes(junk)
    assert hash_weights(folder, cache) == before
    assert all(file.read_bytes() != junk for file in (cache / "hashes").iterdir())


def test_a_cache_that_cannot_be_written_does_no_harm(folder: Path) -> None:
    (folder / "cache").write_text("not a folder")
    assert hash_weights(folder, folder / "cache") == hash_weights(folder, None)


def test_the_machine_and_the_kernels_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = hash_weights(folder, None)
    kernels = kernels_identity(TorchKernels())
    here = fingerprint(describe_computation(weights, CPU, kernels=kernels))
    assert here == fingerprint(describe_computation(weights, CPU, kernels=kernels))
    assert here != fingerprint(describe_computation(weights, CPU, kernels="other kernels"))
    portable = describe_computation(weights, CPU, portable=True, kernels=kernels)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX1024")
    assert here != fingerprint(describe_computation(weights, CPU, kernels=kernels))
    assert portable == describe_computation(weights, CPU, portable=True, kernels=kernels)
