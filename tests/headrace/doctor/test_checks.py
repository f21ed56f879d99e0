"""`headrace doctor`: the device that the engine will use, and the model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from headrace.doctor.checks import examine
from headrace.doctor.finding import Finding
from shared.models.model_store import PACKAGED, REVISION
from shared.settings import load

CARD = "NVIDIA H100"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def add_program(folder: Path, name: str) -> None:
    (folder / name).touch(mode=0o755)


def finding(what: str, **given: object) -> Finding:
    findings = examine(load({"model": "scripted", "port": 0, **given}))
    return next(finding for finding in findings if finding.what == what)


def device(**given: str) -> Finding:
    return finding("device", **given)


def test_without_a_gpu_the_device_is_the_cpu(folder: Path) -> None:
    assert device() == device(device="cpu") == Finding("device", "ok", "CPU")


@pytest.mark.parametrize(
    ("given", "count", "status"),
    [({}, 0, "warning"), ({"device": "cuda"}, 0, "failed"), ({"device": "cuda:1"}, 1, "failed")],
)
def test_a_gpu_unknown_to_torch_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], count: int, status: str
) -> None:
    add_program(folder, "nvidia-smi")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    found = device(**given)
    assert (found.status, found.found) == (status, f"torch {torch.__version__} finds {count} GPUs")
    assert "CUDA" in found.remedy
    assert device(device="cpu").status == "ok"


def test_what_triton_lacks_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_program(folder, "nvidia-smi")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"{CARD} {device}")
    assert device(device="cuda:1").found == f"{CARD} 1, at a fraction of its speed without a C compiler"
    add_program(folder, "cc")
    assert device() == Finding("device", "ok", f"{CARD} 0")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    found = device()
    assert (found.status, found.remedy) == ("warning", "install Triton")


@pytest.mark.parametrize("model", PACKAGED)
def test_a_packaged_model_is_found_where_it_is_set_up(tmp_path: Path, model: str) -> None:
    """Given no model in the cache, none is downloaded; given a complete one, it is the folder of the worker."""
    found = finding("model", model=model, cache_dir=tmp_path)
    assert (found.status, found.found) == ("warning", f"{model} is not set up yet")
    folder = tmp_path / "models" / f"revision-{REVISION}" / model
    folder.mkdir(parents=True)
    assert finding("model", model=model, cache_dir=tmp_path) == found  # as a killed process leaves it
    (folder / "revision").write_text(REVISION)
    assert finding("model", model=model, cache_dir=tmp_path) == Finding("model", "ok", f"{model}: {folder}")
