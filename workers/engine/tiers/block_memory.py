"""Bytes of the blocks of a KV cache, read and written beside the engine's thread.

Copies on the CPU use numpy: torch would start another team of OpenMP threads, which slows the engine's own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class BlockMemory:
    """Memory of a cache, [layers, 2, blocks, heads, slots, dim], by block.

    The caller makes sure that a block is not written while it is read, or read while it is written.
    """

    def __init__(self, cache: Tensor) -> None:
        layers, both, blocks = cache.shape[:3]
        self._bytes = cache.view(layers * both, blocks, -1).view(torch.uint8)
        self._shape = self._bytes.shape[0], self._bytes.shape[2]
        self._array = self._bytes.numpy() if cache.device.type == "cpu" else None

    def read(self, block: int, target: np.ndarray) -> None:
        """Copy a block's bytes to `target`, one-dimensional."""
        if self._array is not None:
            target.reshape(self._shape)[:] = self._array[:, block]
        else:
            target.reshape(self._shape)[:] = self._bytes[:, block].cpu().numpy()

    @torch.inference_mode()
    def write(self, block: int, content: memoryview) -> None:
        source = np.frombuffer(content, np.uint8).reshape(self._shape)
        if self._array is not None:
            self._array[:, block] = source
        else:
            self._bytes[:, block].copy_(torch.from_numpy(source.copy()))
