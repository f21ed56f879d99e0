"""Memory that this process has allocated on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

MEASURE_INTERVAL_S = 1.0  # reading the allocator's counters takes longer than the other statistics of a step


class GpuMemory:
    """Reads the allocator's counters at most once per MEASURE_INTERVAL_S; None for a device without such memory.

    It makes no call to the driver, which may hang.
    """

    def __init__(self, device: torch.device, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._device = device
        self._clock = clock
        self._used: int | None = None
        self._due = 0.0

    def used(self) -> int | None:
        """Return the bytes that PyTorch holds on the GPU, those it keeps for later allocations included."""
        if self._device.type != "cuda":
            return None
        now = self._clock()
        if now >= self._due:
            self._used, self._due = torch.cuda.memory_reserved(self._device), now + MEASURE_INTERVAL_S
        return self._used
