"""Fingerprint of an engine: equal for engines that compute the same bits.

The compiled kernels compute the same bits with vectors of any width. torch does not: its sums and its functions
depend on the width, which counts where torch computes more than single operations.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from shared.models.weight_files import weight_files
from shared.protocol import PROTOCOL_VERSION
from workers.engine.kernels import Kernels, build

KERNEL_SOURCES = ("*.cpp", "*.h", "*_triton.py")
DIGEST_BYTES = 6
SMALL_BYTES = 2**26  # a file up to this size is hashed in less than 0.2 s, and its hash is not kept


def describe_computation(
    weights: str, device: torch.device, *, portable: bool = False, **parts: str
) -> dict[str, str]:
    """Return what the bits of an engine depend on, by name.

    Args:
        weights: their hash, by `hash_weights`.
        portable: the bits do not depend on the width of the CPU's vectors.
    """
    common = {"protocol": str(PROTOCOL_VERSION), "torch": str(torch.__version__), "weights": weights}
    return common | _kind(device, portable=portable) | parts


def fingerprint(computation: Mapping[str, str]) -> str:
    """Return a string that is equal for equal computations."""
    known = repr(sorted(computation.items()))
    return f"fp_{hashlib.blake2b(known.encode(), digest_size=DIGEST_BYTES).hexdigest()}"


def kernels_identity(kernels: Kernels) -> str:
    """Return a string that is equal for kernels of one kind and one source."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in KERNEL_SOURCES for path in build.SOURCE_FOLDER.glob(pattern)):
        digest.update(path.read_bytes())
    return f"{type(kernels).__name__} {kernels.rounding} {digest.hexdigest()}".replace("  ", " ")


def hash_weights(folder: Path, cache: Path | None) -> str:
    """Return a hash of config.json and of all bytes of the weights.

    Args:
        cache: folder in whose `hashes` the hash of a large file is kept until the file changes.
    """
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weight_files(folder)]:
        digest.update(f"{path.name} {_hash_of(path, cache)}\n".encode())
    return digest.hexdigest()


def _kind(device: torch.device, *, portable: bool) -> dict[str, str]:
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    if portable:
        return {"device": device.type, "machine": platform.machine()}
    return {"device": device.type, "vectors": torch.backends.cpu.get_cpu_capability()}


def _hash_of(path: Path, cache: Path | None) -> str:
    if cache is None or path.stat().st_size <= SMALL_BYTES:
        return _hash(path)
    place = cache / "hashes" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.sha256"
    state = _state(path)
    with suppress(OSError, ValueError):
        kept, found = place.read_text(encoding="ascii").split("\n")
        if kept == state:
            return found
    found = _hash(path)
    with suppress(OSError):  # then it is computed again at the next start
        _replace(place, f"{state}\n{found}")
    return found


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> str:
    found = path.stat()
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"


def _replace(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{place.name}.{secrets.token_hex(4)}")
    temporary.write_text(text, encoding="ascii")
    temporary.replace(place)
