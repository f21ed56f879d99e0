"""Memory of packed weights: of one process, or a file in the cache that the workers of one machine map and share.

Layers take their arrays in the order in which a model is loaded, so the same model finds the same arrays in a file.
"""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

ALIGNMENT = mmap.ALLOCATIONGRANULARITY  # of each array in a file


class PackedArrays(Protocol):
    """Source of one-dimensional arrays for packed weights.

    Attributes:
        filled: the arrays have their contents already.
    """

    @property
    def filled(self) -> bool: ...

    def take(self, size: int, dtype: torch.dtype) -> Tensor:
        """Return the next array, [size], filled with zeros unless `filled`."""


class OwnArrays:
    """Memory of this process."""

    filled = False

    def take(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype)


class WrittenArrays:
    """Arrays of a new file, which is on disk once `close` returns.

    Taking an array raises OSError if the disk is full: its space is reserved, since a write to a mapped page that
    the disk cannot hold would end the process.
    """

    filled = False

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb+")
        self._end = 0

    def take(self, size: int, dtype: torch.dtype) -> Tensor:
        length = size * dtype.itemsize
        os.posix_fallocate(self._file.fileno(), self._end, length)
        mapped = mmap.mmap(self._file.fileno(), length, offset=self._end)
        self._end += _aligned(length)
        return torch.frombuffer(mapped, dtype=dtype, count=size)

    def close(self) -> None:
        """Write the contents to the disk: a crash of the machine must not leave a file with zeros."""
        os.fsync(self._file.fileno())
        self._file.close()


class MappedArrays:
    """Arrays of a complete file. Their pages are shared with all processes that map it."""

    filled = True

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants writable memory
        self._end = 0

    def take(self, size: int, dtype: torch.dtype) -> Tensor:
        found = torch.frombuffer(self._mapped, dtype=dtype, count=size, offset=self._end)
        self._end += _aligned(size * dtype.itemsize)
        return found


OWN_ARRAYS = OwnArrays()


def _aligned(length: int) -> int:
    return math.ceil(length / ALIGNMENT) * ALIGNMENT
