"""Packed weights in the cache, made once for all workers of a machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import structlog

from shared.models.weight_files import weight_files
from shared.runtime.shared_cache import make_once
from workers.engine.kernels import Kernels
from workers.engine.kernels.cpp_kernels import CppKernels
from workers.engine.models.decoder import Decoder
from workers.engine.quantization.packed_arrays import MappedArrays, WrittenArrays

_log = structlog.get_logger(__name__)


def load_shared(
    load: Callable[[Kernels], Decoder], kernels: CppKernels, checkpoint: Path, cache: Path, part: str = ""
) -> Decoder:
    """Return what `load` makes of a checkpoint, with packed weights mapped from a file in `cache`.

    If the file cannot be made, the weights are in the memory of this process.

    Args:
        part: name of the part of the model that `load` makes; empty for the whole.
    """
    target = cache / _file_name(checkpoint, kernels, part)
    try:
        make_once(target, partial(_pack, load, kernels, target))
        arrays = MappedArrays(target)
    except OSError as error:
        _log.warning("weights_not_shared", reason=error.strerror, effect="each worker has a copy of its own")
        return load(kernels)
    return load(kernels.with_arrays(arrays))


def _pack(load: Callable[[Kernels], Decoder], kernels: CppKernels, target: Path, work: Path) -> Path:
    """Return a file with the packed weights. The one that it replaces is removed, and stays where it is mapped."""
    with closing(WrittenArrays(work / "weights")) as arrays:
        load(kernels.with_arrays(arrays))
    for stale in target.parent.glob(f"{target.name.split('.')[0]}.*.weights"):
        stale.unlink(missing_ok=True)
    return work / "weights"


def _file_name(checkpoint: Path, kernels: CppKernels, part: str) -> str:
    """Return a name: of folder, weight format and part, then of everything that the contents depend on."""
    build, _, quantization = kernels.packed_format.partition("-")
    contents = [build, kernels.quantization.identity]
    for path in [checkpoint / "config.json", *weight_files(checkpoint)]:
        found = path.stat()
        contents.append(f"{path.resolve()} {found.st_size} {found.st_mtime_ns} {found.st_ino}")
    place = "-".join(filter(None, (_digest(str(checkpoint.resolve())), quantization, part)))
    return f"{place}.{_digest(*contents)}.weights"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
