"""Exchange of tensors among ranks by torch.distributed: gloo on CPUs, over the loopback interface; NCCL on GPUs.

Sums are added in the order of the ranks, number by number. So they are the same in every run and on every rank, and
a row's sum depends on that row alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from workers.engine.models.decoder import never

TIMEOUT_S = 60.0  # of one exchange; a worker that waits is usually replaced before, see `step_timeout`
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


class RankGroup(Protocol):
    """Ranks that compute a step together; all make the same calls in the same order."""

    def sum(self, part: Tensor) -> Tensor:
        """Return the sum of the ranks' parts, of the same shape and type. It is valid until the next call."""

    def join(self, part: Tensor, width: int) -> Tensor:
        """Return the ranks' columns side by side, [rows, width], to rank 0; the part to the others."""


class DistributedGroup:
    """Group by torch.distributed; see `RankGroup`. Its calls raise RuntimeError if a rank is lost or hangs.

    Args:
        store: file by which the ranks find each other.
    """

    def __init__(self, rank: int, size: int, store: str, device: torch.device) -> None:
        self._rank, self._size = rank, size
        self._group = _connect(rank, size, store, device)
        self._asks = device.type == "cpu"  # on a GPU, to read an answer would be to wait for the device
        self._ask: Callable[[], bool] = never
        self._stops = False
        self._parts = torch.empty(0)
        self.sum(torch.zeros(1, 1, device=device))  # some connections are made at the first exchange

    def begin_step(self, interrupted: Callable[[], bool] = never) -> None:
        """Begin a step, which rank 0 may interrupt: after each sum, all ranks know what `interrupted` returned."""
        self._ask, self._stops = interrupted, False

    def stops(self) -> bool:
        """Return whether the step is interrupted, the same on every rank."""
        return self._stops

    def sum(self, part: Tensor) -> Tensor:
        first: Tensor
        count = part.numel()
        own = part.new_empty(count + self._asks)
        own[:count] = part.flatten()
        if self._asks:
            own[count] = self._ask()
        shape = (self._size, len(own))
        if self._parts.shape != shape or self._parts.dtype != part.dtype or self._parts.device != part.device:
            self._parts = part.new_empty(shape)
        parts = list(self._parts)
        self._group.allgather(parts, own).wait()
        if self._asks:
            self._stops |= bool(parts[0][count])
        first, *others = (each[:count].view(part.shape) for each in parts)
        if part.dtype == torch.float32:
            for other in others:
                first += other
            return first
        total = first.float()
        for other in others:
            total += other
        return total.to(part.dtype)

    def join(self, part: Tensor, width: int) -> Tensor:
        rows = len(part)
        if not rows:
            return part.new_empty(0, width)
        widest = -(-width // self._size)
        own = part.new_zeros(rows, widest)
        own[:, : part.shape[1]] = part
        parts = [torch.empty_like(own) for _ in range(self._size)] if self._rank == 0 else []
        self._group.gather(parts, own, 0).wait()
        if self._rank:
            return part
        bounds = [width * rank // self._size for rank in range(self._size + 1)]
        joined = part.new_empty(rows, width)
        for each, begin, end in zip(parts, bounds, bounds[1:], strict=False):
            joined[:, begin:end] = each[:, : end - begin]
        return joined


def _connect(rank: int, size: int, store: str, device: torch.device) -> Any:
    """Return a `torch.distributed.Backend`, whose collectives its stubs lack. Raises RuntimeError.

    It belongs to no default group, so that a process can have several.
    """
    files = dist.FileStore(store, size)  # type: ignore[attr-defined]  # public, but missing in __all__
    files.set_timeout(timedelta(seconds=TIMEOUT_S))
    if device.type == "cuda":
        nccl = dist.ProcessGroupNCCL(files, rank, size, dist.ProcessGroupNCCL.Options())
        nccl.set_timeout(timedelta(seconds=TIMEOUT_S))
        return nccl
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)  # read by gloo alone
    return dist.ProcessGroupGloo(files, rank, size, timedelta(seconds=TIMEOUT_S))
