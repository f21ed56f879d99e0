"""Compilation of the C++ kernels at first use. The libraries are cached by sources, compiler and CPU.

One process builds while others wait.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog
import torch

from shared.runtime.shared_cache import make_once

SOURCE_FOLDER = Path(__file__).parent
# no -ffast-math: NaN must stay NaN, and sums must keep their order
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
WARNINGS = ("-Wall", "-Wno-psabi")
COMPILER_TIMEOUT_S = 600.0

_log = structlog.get_logger(__name__)


class BuildFailed(Exception):
    """Raised when the kernels cannot be built or loaded on this machine; plain torch is then used instead."""


def find_compiler() -> str | None:
    """Return the C++ compiler: $CXX, c++ or g++."""
    return shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")


def load_library(folder: Path, extra_flags: Sequence[str] = ()) -> ctypes.CDLL:
    """Load the library from `folder`, after building it if it is missing. Raises BuildFailed.

    Args:
        extra_flags: options of the compiler, such as another CPU.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildFailed("no C++ compiler found")
    try:
        flags = [*_flags(), *extra_flags]
        path = folder / f"{_key(compiler, flags)}.so"
        make_once(path, partial(_build, compiler, flags))
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildFailed(f"{type(error).__name__}: {error}") from error


def _build(compiler: str, flags: Sequence[str], work: Path) -> Path:
    begin = time.monotonic()
    made = work / "kernels.so"
    _run(_compile_command(compiler, flags, made))
    _log.info("kernels_built", seconds=round(time.monotonic() - begin, 1))
    return made


def _compile_command(compiler: str, flags: Sequence[str], target: Path) -> list[str]:
    """Return the command that compiles and links.

    It links torch's own OpenMP, which is loaded already: a second one would have its own threads.
    """
    torch_folder = Path(torch.__file__).parent
    return [
        compiler,
        *flags,
        *WARNINGS,
        *("-isystem", str(torch_folder / "include")),
        *sorted(str(source) for source in SOURCE_FOLDER.glob("*.cpp")),
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
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=COMPILER_TIMEOUT_S
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise BuildFailed(f"the compiler failed: {reason}")
    return done.stdout


def _key(compiler: str, flags: Sequence[str]) -> str:
    """Hash all that a library depends on: sources, flags, compiler, torch, and the CPU (for -march=native)."""
    parts = [_run([compiler, "--version"]), torch.__version__, *flags, _cpu_flags()]
    parts += [path.read_text(encoding="utf-8") for path in sorted(SOURCE_FOLDER.glob("*.[ch]*")) if path.is_file()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _cpu_flags() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
