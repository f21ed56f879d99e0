"""What `headrace doctor` says of the device that the engine computes on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from headrace.doctor.checks import examine
from headrace.doctor.finding import Finding
from shared.settings import load

CARD = "NVIDIA H100"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that there is of programs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def program(folder: Path, name: str) -> None:
    (folder / name).touch(mode=0o755)


def device(**given: str) -> Finding:
    findings = examine(load({"model": "scripted", "port": 0, **given}))
    return next(finding for finding in findings if finding.what == "device")


def test_a_machine_without_a_gpu(folder: Path) -> None:
    assert device() == device(device="cpu") == Finding("device", "ok", "the CPU")


@pytest.mark.parametrize(
    ("given", "count", "status"),
    [({}, 0, "warning"), ({"device": "cuda"}, 0, "failed"), ({"device": "cuda:1"}, 1, "failed")],
)
def test_a_gpu_that_torch_does_not_find(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], count: int, status: str
) -> None:
    program(folder, "nvidia-smi")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    found = device(**given)
    assert (found.status, found.found) == (status, f"torch {torch.__version__} finds {count} GPUs")
    assert "CUDA" in found.remedy
    assert device(device="cpu").status == "ok"


def test_a_gpu_with_and_without_what_triton_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(folder, "nvidia-smi")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"{CARD} {device}")
    assert device(device="cuda:1").found == f"{CARD} 1, at a small part of its speed: no C compiler"
    program(folder, "cc")
    assert device() == Finding("device", "ok", f"{CARD} 0")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else there(name))
    found = device()
    assert (found.status, found.remedy) == ("warning", "install Triton")
