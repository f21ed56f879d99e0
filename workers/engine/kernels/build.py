"""Builds the C++ kernels at first use and keeps the library in a folder, one for each source, compiler and CPU.

A file lock lets one process build while others wait; the library is renamed into place whole. It knows nothing of
what the kernels compute.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import structlog
import torch

SOURCES = Path(__file__).parent
# no -ffast-math: NaN must stay NaN, and sums keep the order in which they are written
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
WARNINGS = ("-Wall", "-Wno-psabi")
LIMIT = 600.0  # seconds for one call of the compiler

_log = structlog.get_logger(__name__)


class BuildFailed(Exception):
    """The kernels cannot be built or loaded here; plain torch serves instead, so that no caller sees it."""


def find_compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")


def load_library(folder: Path) -> ctypes.CDLL:
    """The library out of `folder`, built there first where it is missing. Raises BuildFailed."""
    compiler = find_compiler()
    if compiler is None:
        raise BuildFailed("there is no C++ compiler")
    try:
        path = folder / f"{_key(compiler)}.so"
        if not path.exists():
            _build_once(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildFailed(f"{type(error).__name__}: {error}") from error


def _build_once(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():  # another process was first
            return
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as work:
            made = Path(work) / path.name
            _run(_compile_command(compiler, made))
            made.rename(path)
        _log.info("kernels_built", seconds=round(time.monotonic() - begin, 1))


def _compile_command(compiler: str, target: Path) -> list[str]:
    """Compiles and links. OpenMP is torch's own, which is loaded already: a second one would have other threads."""
    torch_folder = Path(torch.__file__).parent
    return [
        compiler,
        *_flags(),
        *WARNINGS,
        *("-isystem", str(torch_folder / "include")),
        *sorted(str(source) for source in SOURCES.glob("*.cpp")),
        "-shared",
        "-nodefaultlibs",
        "-o",
        str(target),
        f"-L{torch_folder / 'lib'}",
        *("-ltorch_cpu", "-lc10", "-lstdc++", "-lm", "-lgcc_s", "-lgcc", "-lc"),
    ]


def _flags() -> list[str]:
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    return [*FLAGS, native]


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise BuildFailed(f"the compiler failed: {reason}")
    return done.stdout


def _key(compiler: str) -> str:
    """What a library depends on: sources, flags, compiler, torch, and what -march=native means here."""
    parts = [_run([compiler, "--version"]), torch.__version__, *_flags(), _cpu_flags()]
    parts += [path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.[ch]*")) if path.is_file()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _cpu_flags() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
